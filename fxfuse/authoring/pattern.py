"""`Pattern`: a reference function that is at once the pattern, the oracle and the op that kernels implement."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from fxfuse.authoring.captures import Capture, Shaped, is_optional
from fxfuse.authoring.keys import has_nested_alternatives, key_of
from fxfuse.authoring.markers import run_reference
from fxfuse.authoring.sizes import Dim
from fxfuse.authoring.terms import Line, ManyTerm, TermGraph
from fxfuse.authoring.trace import captures_of, key_without, trace
from fxfuse.errors import PatternError

Constraint = Callable[[Any], None]


class Pattern:
    """A named subgraph, made by :func:`pattern`.

    Attributes:
        name: unique in its pack.
        captures: name -> capture, in declaration order.
        choices: ``one_of`` name -> labels; a match's variant has one label for each choice on its way.
        forms: what is searched for: one graph of terms, or several where the absence of optional captures changes it.
        priority: higher wins where two sites overlap.
    """

    def __init__(self, name: str, function: Callable[..., Any], *, priority: int = 0) -> None:
        code = inspect.unwrap(function).__code__
        self.name = name
        self.function = function
        self.priority = priority
        self.line = Line(code.co_filename, code.co_firstlineno)
        self.captures: dict[str, Capture] = captures_of(function, name)
        self.forms: tuple[TermGraph, ...] = trace(function, self.captures, name, self.line)
        self.constraints: list[Constraint] = []
        self._without: dict[tuple[frozenset[str], frozenset[str]], bool] = {}
        self.__doc__ = function.__doc__
        self.__name__ = name

    @cached_property
    def may_overlap_itself(self) -> bool:
        """Whether one operation may be part of several of its matches, so that all of them must be looked for."""
        kept = any(t.keep for form in self.forms for t in form.order)
        return self.has_several_outputs or kept or any(map(has_nested_alternatives, self.forms))

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        return {name: labels for form in self.forms for name, labels in form.choices.items()}

    @property
    def dims(self) -> tuple[Dim, ...]:
        found = [d for c in self.captures.values() if isinstance(c, Shaped) for d in c.named_dims()]
        return tuple(dict.fromkeys(found))

    @property
    def size(self) -> int:
        """How many operations it spans; the default order of preference where sites overlap."""
        return self.forms[0].operations

    @property
    def has_several_outputs(self) -> bool:
        """Whether its kernels return a tuple."""
        outputs = self.forms[0].outputs
        return len(outputs) > 1 or isinstance(outputs[0], ManyTerm)

    def is_form_without(self, form: TermGraph, absent: frozenset[str]) -> bool:
        """Whether the reference without these captures is this form without these operands, and no more.

        The forms show it of one operand at a time and of all; a reference may ask for several that are absent together.
        """
        everything = frozenset(c for c, capture in self.captures.items() if is_optional(capture))
        shown = not form.absent and (len(absent) == 1 or (len(self.forms) == 1 and absent == everything))
        if not absent or shown:
            return True
        if (form.absent, absent) not in self._without:
            traced = key_without(self.function, self.captures, self.name, self.line, form.absent | absent)
            self._without[form.absent, absent] = traced == key_of(form, without=absent)
        return self._without[form.absent, absent]

    def constraint(self, function: Constraint) -> Constraint:
        """Add a condition: ``function(match)`` calls ``match.require(condition, message, at=...)``."""
        if not takes_one(function):
            raise PatternError(f"a constraint of pattern {self.name!r} takes one argument, the match.")
        self.constraints.append(function)
        return function

    def reference(self, values: Mapping[str, Any], variant: Mapping[str, str]) -> Any:
        """The reference function on these captures (absent optional ones are None), with these alternatives."""
        missing = {name: None for name in self.captures if name not in values}
        return run_reference(self.function, {**missing, **values}, variant)

    def describe(self) -> str:
        """The pattern as text: captures, choices and the author's line."""
        rows = [f"{self.name}  ({self.line})"]
        captures: dict[str, Any] = dict(self.captures)  # every kind can describe itself
        for name, capture in captures.items():
            rows.append(f"  {name}: {type(capture).__name__.strip('_')}{capture.describe()}")
        rows += [f"  one of {name}: {', '.join(labels)}" for name, labels in self.choices.items()]
        if self.has_several_outputs:
            rows.append(f"  returns: {', '.join(map(str, self.forms[0].outputs))}")
        for form in self.forms:
            without = f" without {', '.join(sorted(form.absent))}" if form.absent else ""
            rows.append(f"  searched from{without}: {', '.join(dict.fromkeys(t.op for t in form.seeds))}")
        return "\n".join(rows)

    # The matcher, reports and checks read patterns, so what follows imports them where an author asks for them.

    def match(self, program: Any) -> list[Any]:
        """The matches that would be rewritten, in graph order; see ``fxfuse.match.Match``.

        Args:
            program: an ``fx.GraphModule`` or ``torch.export.ExportedProgram``.
        """
        from fxfuse.match import select, sites_of
        from fxfuse.view import View
        from fxfuse.view.leaves import leaves_of

        view = View(program.graph, leaves=leaves_of(program))
        return [s.match for s in select(sites_of(view, self)) if s.match is not None and s.reason is None]

    def explain(self, gm: Any, at: Any = None) -> Any:
        """Why this pattern is, or is not, in a graph: a report of its matches and near misses, as a compile has them.

        Args:
            gm: an ``fx.GraphModule`` or ``torch.export.ExportedProgram``.
            at: a node of it, a node's name, or a module's path; then only what is there, and if nothing is nearly the
                pattern, how far it got.

        Raises:
            OptionError: the graph has no such node or module.
        """
        from fxfuse.explaining import explain_pattern

        return explain_pattern(self, gm, at)

    def examples(self, **keywords: Any) -> Iterator[Any]:
        """An example of every variant, in every dtype, static and symbolic; see ``fxfuse.checking.examples``."""
        from fxfuse.checking import examples

        return examples(self, **keywords)

    def verify(self, *, seed: int = 0, quick: bool = False) -> Any:
        """What ``fxfuse check`` finds out about this pattern and its kernels; ``passed`` says whether all is right."""
        from fxfuse.checking import check_pattern

        return check_pattern(self, seed=seed, quick=quick)

    def __copy__(self) -> Pattern:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Pattern:
        return self  # a definition, compared by identity: a copy would be another pattern

    def __reduce__(self) -> tuple[Any, ...]:
        return _importable, (self.function.__module__, self.name)

    def __repr__(self) -> str:
        return f"<fxfuse pattern {self.name!r} from {self.line}>"


def takes_one(function: Any) -> bool:
    """Whether something can be called with one argument by position, and has no further parameter."""
    try:
        (parameter,) = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # no function, one without a signature, or another number of parameters
        return False
    return parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)


def _importable(module: str, name: str) -> Pattern:
    """The pattern of this name in a module, for unpickling."""
    found = [p for p in vars(importlib.import_module(module)).values() if isinstance(p, Pattern) and p.name == name]
    if not found:
        raise PatternError(f"module {module!r} holds no pattern {name!r}, so it cannot be unpickled.")
    return found[0]


def pattern(name: str, *, priority: int = 0) -> Callable[[Callable[..., Any]], Pattern]:
    """Make a pattern of a reference function whose parameters have captures as defaults.

    The function runs once, here, with symbolic values; what is wrong with it raises :class:`PatternError` now.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise PatternError(f"a pattern's name is an identifier; given {name!r}.")
    return lambda function: Pattern(name, function, priority=priority)
