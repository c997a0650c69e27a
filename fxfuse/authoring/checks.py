"""Errors of definition that show only in the canonical form: what could never match, or would mean two things."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import fx

from fxfuse.authoring.captures import Capture, is_param
from fxfuse.authoring.terms import CaptureTerm, DtypeTerm, ManyTerm, OpTerm, Term, TermGraph, is_number
from fxfuse.errors import PatternError
from fxfuse.view.effects import written_by


def check_writes(graph: fx.Graph, name: str) -> None:
    """A write whose result is dropped would be in the reference and not in the pattern."""
    for node in graph.nodes:
        if any(written_by(node)):
            what = getattr(node.target, "__name__", node.target)
            raise PatternError(
                f"pattern {name!r} at {node.meta['line']}: {what} writes in place; a reference function computes "
                f"new values, such as `h = h + 1` for `h.add_(1)`."
            )


def check_choice_names(graph: TermGraph, captures: Mapping[str, Capture], name: str) -> None:
    """A kernel is given captures and choices by name, in one call."""
    for choice in graph.choices:
        if choice in captures:
            raise PatternError(
                f"pattern {name!r}: a capture and a one_of are both called {choice!r}; a kernel is given both by name."
            )


def check_dtypes(graph: TermGraph, name: str) -> None:
    """A cast may only ask for the dtype of what the pattern finds in a graph."""
    for term in graph.order:
        for arg in term.args.values() if isinstance(term, OpTerm) else ():
            if isinstance(arg, DtypeTerm) and arg.of not in graph.parents and arg.of not in graph.outputs:
                raise PatternError(
                    f"pattern {name!r} at {term.line}: casts to the dtype of {arg.of}, which is no part of what the "
                    f"pattern computes; take the dtype of a capture or of a value that is."
                )


def check_numbers(graph: TermGraph, name: str) -> None:
    """A graph holds results of arithmetic on literals, not the arithmetic."""
    for term in graph.order:
        children = list(term.children())
        if isinstance(term, OpTerm) and children and all(map(is_number, children)) and "input" in term.args:
            raise PatternError(
                f"pattern {name!r} at {term.line}: {term.op} of Scalars alone, which no graph shows; declare a Scalar "
                f"for the result."
            )


_DIMENSIONS = ("dim", "dim0", "dim1", "dims")


def check_dimensions(graph: TermGraph, name: str) -> None:
    """The number of dimensions is open in a pattern, so a dimension counted from the front is nowhere for certain."""
    for term in (t for t in graph.order if isinstance(t, OpTerm)):
        if all(is_param(t.capture) for t in graph.below(term) if isinstance(t, CaptureTerm)):
            continue  # what is made of parameters alone has as many dimensions as they have
        for key in _DIMENSIONS:
            given = term.args.get(key)
            for dim in given if isinstance(given, tuple) else (given,):
                if type(dim) is int and dim >= 0:
                    raise PatternError(
                        f"pattern {name!r} at {term.line}: {term.op} counts dimension {dim} from the front; count from "
                        f"the end (-1 is the last), since a pattern serves any number of leading dimensions."
                    )


def check_reach(graph: TermGraph, name: str) -> None:
    """The search goes from one output to the next by the values that they share; siblings share one, too."""
    reach = [frozenset(_reached(graph, output)) for output in graph.outputs]
    for output, shared in zip(graph.outputs, reach, strict=True):
        if isinstance(output, ManyTerm) and not shared:
            raise PatternError(
                f"pattern {name!r} at {output.line}: the siblings of many(...) have no tensor in common, so nothing "
                f"leads from one to the next."
            )
    together = set(reach[0])
    apart = list(zip(graph.outputs[1:], reach[1:], strict=True))
    while apart:
        near = [pair for pair in apart if not together.isdisjoint(pair[1])]
        if not near:
            raise PatternError(
                f"pattern {name!r}: nothing leads from {graph.outputs[0]} to {apart[0][0]}, which have no tensor in "
                f"common; they are two patterns."
            )
        together.update(*(shared for _, shared in near))
        apart = [pair for pair in apart if pair not in near]


def check_siblings(graph: TermGraph, name: str) -> None:
    """A ``many`` capture is one tuple, in the order of one group of siblings."""
    seen: set[str] = set()
    for output in graph.outputs:
        names = {t.name for t in output.own if isinstance(t, CaptureTerm)} if isinstance(output, ManyTerm) else set()
        twice = sorted(names & seen)
        if twice:
            raise PatternError(
                f"pattern {name!r} at {output.line}: capture {twice[0]!r} is given to many(...) twice; the two groups "
                f"of siblings may differ, so each has captures of its own."
            )
        seen |= names


def check_forms(forms: Sequence[TermGraph], name: str) -> None:
    """A kernel of a pattern returns the same number of results whatever operands are absent."""
    counts = {tuple(isinstance(o, ManyTerm) for o in form.outputs) for form in forms}
    if len(counts) > 1:
        raise PatternError(
            f"pattern {name!r} returns {' or '.join(sorted(str(len(c)) for c in counts))} results, depending on which "
            f"optional captures are absent; it must return the same number of them always."
        )


def _reached(graph: TermGraph, output: Term) -> Iterator[Term]:
    if isinstance(output, ManyTerm):
        yield from output.shared
    else:
        yield from (t for t in graph.below(output) if not is_number(t))
