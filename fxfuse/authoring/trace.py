"""Tracing a reference function: it runs on symbols, and what it did is the pattern.

No example tensors: shapes and dtypes seen while tracing are how other systems come to match nothing in silence.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import linecache
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx

from fxfuse.authoring.captures import Capture, is_many, is_optional, is_param
from fxfuse.authoring.checks import (
    check_choice_names,
    check_dimensions,
    check_dtypes,
    check_forms,
    check_numbers,
    check_reach,
    check_siblings,
    check_writes,
)
from fxfuse.authoring.keys import Keys, key_of
from fxfuse.authoring.markers import TRACING, Occurrences
from fxfuse.authoring.terms import (
    CaptureTerm,
    ChoiceTerm,
    DtypeTerm,
    Line,
    ManyTerm,
    OpTerm,
    Term,
    TermGraph,
    is_number,
    terms_in,
)
from fxfuse.errors import PatternError
from fxfuse.view import DtypeOf, Leaf, LeafKind, Value, View
from fxfuse.view.numbers import NUMBER_AS_GIVEN
from fxfuse.view.ops import READS_METADATA_ONLY, REQUIRED, SPECS
from fxfuse.view.rules.casts import PROMOTED

MOST_OPTIONAL = 4
"""Optional captures on whose absence a reference may branch: each doubles the forms that are searched for."""

RESERVED = frozenset(
    {
        "view",
        "pattern",
        "form",
        "bound",
        "siblings",
        "sizes",
        "variant",
        "captures",
        "outputs",
        "root",
        "interior",
        "nodes",
        "seen_through",
        "staying",
        "owned",
        "require",
        "captured_values",
        "weight_values",
        "returns_a_tuple",
    }
)
"""Names that a match's own attributes have, so that captures cannot be read as attributes by them."""

_SKIPPED = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)


def _choice(name: str, labels: tuple[str, ...], results: tuple[Any, ...]) -> Any:
    raise AssertionError("a marker in a pattern's trace, never called")


def _flagged(value: Any, flag: str) -> Any:
    raise AssertionError("a marker in a pattern's trace, never called")


def _several(element: Any, least: int) -> Any:
    raise AssertionError("a marker in a pattern's trace, never called")


class Several:
    """What a reference gets for a ``many`` capture while it is traced; only :func:`fxfuse.many` can look into it."""

    def __init__(self, name: str, element: fx.Proxy | None) -> None:
        self._name = name
        self._element = element

    def __getattr__(self, name: str) -> Any:
        raise _misused(self._name)

    def __len__(self) -> int:
        raise _misused(self._name)

    def __iter__(self) -> Iterator[Any]:
        raise _misused(self._name)

    def __getitem__(self, place: Any) -> Any:
        raise _misused(self._name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise _misused(next(a._name for a in args if isinstance(a, Several)))


_NUMBER_FIRST = (
    "torch.{op}(number, x) rounds the number to the dtype of x before it computes, in bf16 and fp16; the operator does "
    "not, and is what models write. Write the operator."
)


def _takes_a_number_first(node: fx.Node, op: str, first: Any) -> bool:
    """Whether ``torch.mul`` or ``torch.div`` is called with a number (or a Scalar) as its first operand."""
    number = isinstance(first, int | float) or (isinstance(first, Term) and is_number(first))
    return number and op in {"mul", "div"} and node.target in NUMBER_AS_GIVEN


def _not_known(value: Value) -> str:
    """Why a reference may not hold this operation, and what it may."""
    if value.op == "getattr" or value.op in READS_METADATA_ONLY or value.op == "item":
        what = f".{value.node.args[1]}" if value.op == "getattr" else f".{value.op}()"
        return (
            f"{what} of a traced value is not known while the reference is traced, and may differ from site to site. "
            f"A reference computes with tensors, and with its Scalars; name sizes with Dim in Input and Param."
        )
    if value.node.args and _takes_a_number_first(value.node, value.op, value.node.args[0]):
        return _NUMBER_FIRST.format(op=value.op)
    if value.op in SPECS:
        params = ", ".join(f"{name}" if d is REQUIRED else f"{name}={d}" for name, d in SPECS[value.op].params)
        return f"the canonical view does not know {value.op!r} as called here. It knows {value.op}({params})."
    near = difflib.get_close_matches(value.op, SPECS, n=8, cutoff=0.4)
    hint = f" The nearest that it knows: {', '.join(near)}." if near else ""
    return f"the canonical view does not know {value.op!r}.{hint} It knows {len(SPECS)} ops: fxfuse/view/ops.py."


def _misused(name: str) -> PatternError:
    return PatternError(
        f"{author_line()}: capture {name!r} stands for any number of siblings; use many(lambda ...: ..., {name}) "
        f"to say what is computed of each."
    )


class _Tracer(fx.Tracer):
    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        proxy: fx.Proxy = super().create_proxy(*args, **kwargs)
        proxy.node.meta["line"] = author_line()
        return proxy


class Tracing:
    """One run of a reference function on symbols."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tracer = _Tracer()
        self.graph = fx.Graph()
        self.tracer.graph = self.graph
        self.tracer.root = torch.nn.Module()
        self.occurrences = Occurrences()

    def choose(self, name: str, alternatives: Mapping[str, Callable[[], Any]]) -> Any:
        if not isinstance(name, str) or not name.isidentifier():
            raise PatternError(f"{author_line()}: one_of takes a name that is an identifier; given {name!r}.")
        functions = [a for a in alternatives.values() if callable(a) and not isinstance(a, fx.Proxy)]
        if len(alternatives) < 2 or len(functions) < len(alternatives):
            raise PatternError(
                f"{author_line()}: one_of({name!r}) needs at least two alternatives, each a function of no arguments."
            )
        results = {}
        for label, make in alternatives.items():
            with self.occurrences.inside(name, label):
                results[label] = make()
        arities = {label: len(r) if isinstance(r, tuple) else None for label, r in results.items()}
        if len(set(arities.values())) != 1:
            raise PatternError(f"{author_line()}: one_of({name!r}) returns different numbers of results: {arities}.")
        arity = next(iter(arities.values()))
        if arity is None:
            return self._mark(name, results)
        return tuple(self._mark(name, {label: r[i] for label, r in results.items()}) for i in range(arity))

    def _mark(self, name: str, results: Mapping[str, Any]) -> fx.Proxy:
        for label, result in results.items():
            if not isinstance(result, fx.Proxy):
                raise PatternError(f"{author_line()}: one_of({name!r}, {label}=...) returns {result!r}, not a tensor.")
        return self.tracer.create_proxy("call_function", _choice, (name, tuple(results), tuple(results.values())), {})

    def flag(self, value: Any, flag: str) -> Any:
        if isinstance(value, tuple):
            return tuple(self.flag(item, flag) for item in value)
        if not isinstance(value, fx.Proxy) or value.node.op == "placeholder":
            what = f"the capture {value.node.target!r}" if isinstance(value, fx.Proxy) else repr(value)
            raise PatternError(f"{author_line()}: {flag}(...) takes a value that the pattern computes; given {what}.")
        return self.tracer.create_proxy("call_function", _flagged, (value, flag), {})

    def several(self, function: Callable[..., Any], captures: tuple[Any, ...], least: int) -> tuple[Any, ...]:
        if not captures or not all(isinstance(c, Several) or c is None for c in captures):
            raise PatternError(f"{author_line()}: many(...) takes captures that are declared with many=True.")
        if isinstance(least, bool) or not isinstance(least, int) or least < 1:
            raise PatternError(f"{author_line()}: many(...) takes least=1 or more; given {least!r}.")
        result = function(*(None if c is None else c._element for c in captures))
        if not isinstance(result, fx.Proxy):
            raise PatternError(f"{author_line()}: the function of many(...) returns {result!r}, not one tensor.")
        return (self.tracer.create_proxy("call_function", _several, (result, least), {}),)


def author_line() -> Line:
    """The innermost line of code that belongs neither to torch nor to fxfuse."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_SKIPPED):
        frame = frame.f_back
    if frame is None:
        return Line("<unknown>", 0)
    file, number = frame.f_code.co_filename, frame.f_lineno
    return Line(file, number, linecache.getline(file, number).strip())


def _line_of(error: Exception) -> Line:
    """The innermost line of the author's code in an error's traceback."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_SKIPPED)]
    return Line(frames[-1].filename, frames[-1].lineno or 0, frames[-1].line or "") if frames else Line("<unknown>", 0)


def captures_of(function: Callable[..., Any], name: str) -> dict[str, Capture]:
    """The captures that a reference function declares, in order."""
    captures: dict[str, Capture] = {}
    for parameter in inspect.signature(function).parameters.values():
        if not isinstance(parameter.default, Capture):
            raise PatternError(
                f"pattern {name!r}: parameter {parameter.name!r} has no capture as its default; "
                f"give it Input(...), Param(...) or Scalar(...)."
            )
        if parameter.name in RESERVED:
            raise PatternError(
                f"pattern {name!r}: a capture cannot be called {parameter.name!r}, which a match has for itself."
            )
        captures[parameter.name] = parameter.default
    if not captures:
        raise PatternError(f"pattern {name!r} captures nothing.")
    return captures


def trace(
    function: Callable[..., Any], captures: Mapping[str, Capture], name: str, line: Line
) -> tuple[TermGraph, ...]:
    """Run ``function`` on symbols and read the results through the view's rules.

    Optional captures are traced as given and as absent, since Python cannot intercept ``is None``. Where leaving one
    out changes nothing but that operand, one form serves both; else there is a form for each combination, those with
    more operations first.
    """
    whole = _form(function, captures, name, line, frozenset())
    optional = [c for c in captures if is_optional(captures[c])]
    if not optional:
        return (whole,)
    required = _required_operands(whole)
    singles = {c: _form(function, captures, name, line, frozenset({c})) for c in optional}
    plain = {c for c in optional if c not in required and key_of(singles[c]) == key_of(whole, without=frozenset({c}))}
    everything = frozenset(optional)
    if plain == everything:
        bare = _form(function, captures, name, line, everything)
        if key_of(bare) == key_of(whole, without=everything):
            return (whole,)
        plain = set()
    branching = [c for c in optional if c not in plain]
    if len(branching) > MOST_OPTIONAL:
        raise PatternError(
            f"pattern {name!r} depends on the absence of {len(branching)} optional captures, {', '.join(branching)}; "
            f"at most {MOST_OPTIONAL} may change what it computes. Use one_of, or a second pattern."
        )
    traced = {frozenset[str](): whole, **{frozenset({c}): form for c, form in singles.items()}}
    forms: dict[Any, TermGraph] = {}
    for count in range(len(branching) + 1):
        for absent in itertools.combinations(branching, count):
            gone = frozenset(absent)
            form = traced[gone] if gone in traced else _form(function, captures, name, line, gone)
            forms.setdefault(key_of(form), form)
    check_forms(list(forms.values()), name)
    return tuple(sorted(forms.values(), key=lambda f: -f.operations))


def key_without(
    function: Callable[..., Any], captures: Mapping[str, Capture], name: str, line: Line, absent: frozenset[str]
) -> Any:
    """What the reference computes without these captures, as :func:`key_of`; None where it cannot run without them."""
    try:
        return key_of(_form(function, captures, name, line, absent))
    except PatternError:
        return None


def _form(
    function: Callable[..., Any], captures: Mapping[str, Capture], name: str, line: Line, absent: frozenset[str]
) -> TermGraph:
    tracing = Tracing(name)
    symbols: dict[str, Any] = {}
    for capture_name, capture in captures.items():
        symbol = (
            tracing.tracer.create_proxy("placeholder", capture_name, (), {}) if capture_name not in absent else None
        )
        symbols[capture_name] = Several(capture_name, symbol) if is_many(capture) else symbol
    without = f" without {', '.join(sorted(absent))}" if absent else ""
    token = TRACING.set(tracing)
    try:
        result = function(**symbols)
    except fx.proxy.TraceError as error:
        raise PatternError(
            f"pattern {name!r}{without} at {_line_of(error)}: a reference function may not branch or loop on a traced "
            f"value ({error}); use one_of for alternatives."
        ) from error
    except PatternError:
        raise
    except Exception as error:
        hint = (
            "The optional captures may be absent, so the function must also run where they are None."
            if absent
            else "A reference function may only compute with its captures: no tensor constants, no numbers or lengths "
            "of traced values."
        )
        raise PatternError(
            f"pattern {name!r}{without} at {_line_of(error)}: {type(error).__name__}: {error}. {hint}"
        ) from error
    finally:
        TRACING.reset(token)
    results = tuple(result) if isinstance(result, tuple | list) else (result,)
    for one in results:
        if not isinstance(one, fx.Proxy):
            raise PatternError(
                f"pattern {name!r}{without} returns {type(one).__name__}; it must return a tensor or a tuple of them."
            )
        if one.node.op == "placeholder":
            raise PatternError(f"pattern {name!r}{without} returns its capture {one.node.target!r} as it is.")
    if not results:
        raise PatternError(f"pattern {name!r}{without} returns nothing.")
    check_writes(tracing.graph, name)
    present = {c: capture for c, capture in captures.items() if c not in absent}
    try:
        return _Terms(name, tracing.graph, present, line).graph([r.node for r in results], absent)
    except RecursionError:
        raise PatternError(
            f"pattern {name!r} has too many operations one after another ({len(tracing.graph.nodes)} in all); about "
            f"150 is the most."
        ) from None


class _Terms:
    """Turns a traced graph into terms, through the same canonical rules as a model's graph."""

    def __init__(self, name: str, graph: fx.Graph, captures: Mapping[str, Capture], line: Line) -> None:
        self.name = name
        self.flagged = list(_remove_flags(graph))
        self.source = graph
        kinds = {name: LeafKind.PARAMETER if is_param(c) else LeafKind.INPUT for name, c in captures.items()}
        self.view = View(graph, symbolic=True, leaves=[Leaf(kind, name) for name, kind in kinds.items()])
        self.captures = captures
        self.line = line
        self.terms: dict[int, Term] = {}
        self.formulas = 0
        self.alive: list[Any] = []  # ids in `terms` stay valid while their values live

    def graph(self, results: list[fx.Node], absent: frozenset[str]) -> TermGraph:
        results = [self._unflagged(node) for node in results]
        graph = TermGraph(tuple(self._output(node) for node in results), absent)
        used = {t.name for t in graph.order if isinstance(t, CaptureTerm)}
        unused = [c for c, capture in self.captures.items() if c not in used and not (absent and is_optional(capture))]
        if unused:
            raise PatternError(f"pattern {self.name!r} never uses its capture {unused[0]!r}; remove it or use it.")
        self._set_flags(graph)
        self._check_choices(graph)
        self._check_several(graph)
        check_choice_names(graph, self.captures, self.name)
        check_dtypes(graph, self.name)
        check_dimensions(graph, self.name)
        check_numbers(graph, self.name)
        check_siblings(graph, self.name)
        check_reach(graph, self.name)
        if not graph.seeds:
            raise PatternError(f"pattern {self.name!r} holds no operation to search for.")
        return graph

    def _unflagged(self, node: fx.Node) -> fx.Node:
        while node.target is _flagged:
            node = node.args[0]  # type: ignore[assignment]  # as `Tracing.flag` put it
        return node

    def _output(self, node: fx.Node) -> Term:
        if node.target is _several:
            element, least = node.args
            return ManyTerm(node.meta["line"], self.term(element), int(str(least)))
        return self.term(node)

    def term(self, raw: Any) -> Any:
        if isinstance(raw, tuple | list):
            return tuple(self.term(item) for item in raw)
        if isinstance(raw, fx.Node) and raw.op == "call_function" and raw.target is _choice:
            return self._once(raw, self._choice)
        operand = self.view.operand(raw)
        if isinstance(operand, DtypeOf):
            of = operand.of if isinstance(operand.of, Value) else self.view.value(operand.of)
            return DtypeTerm(self._of_value(of))
        if isinstance(operand, Value):
            return self._of_value(operand)
        if isinstance(operand, fx.Node):
            raise AssertionError("the view resolves every node")
        return operand

    def _of_value(self, value: Value) -> Term:
        if value.node.op == "call_function" and value.node.target is _choice:
            return self._once(value.node, self._choice)
        return self._once(value, self._op)

    def _once(self, key: Any, make: Callable[[Any], Term]) -> Term:
        if id(key) not in self.terms:
            self.alive.append(key)
            self.terms[id(key)] = make(key)
        return self.terms[id(key)]

    def _choice(self, node: fx.Node) -> Term:
        marked: Any = node.args  # as `Tracing._mark` put them
        name, labels, results = marked
        alternatives = {label: self.term(r) for label, r in zip(labels, results, strict=True)}
        return ChoiceTerm(node.meta["line"], str(name), alternatives)

    def _op(self, value: Value) -> Term:
        if value.leaf is not None:
            name = str(value.node.target)
            return CaptureTerm(self.line, name, self.captures[name])
        if value.plain is not None:
            self.formulas += 1
            alternatives = {"one_op": self._of_op(value, wide=True), "as_written": self._of_value(value.plain)}
            return ChoiceTerm(value.node.meta["line"], f".formula_{self.formulas}", alternatives)
        return self._of_op(value)

    def _of_op(self, value: Value, *, wide: bool = False) -> Term:
        line = value.node.meta["line"]
        if value.node.target is _several:
            raise PatternError(
                f"pattern {self.name!r} at {line}: what many(...) returns can only be returned by the pattern."
            )
        if not value.known or value.op not in SPECS:
            raise PatternError(f"pattern {self.name!r} at {line}: {_not_known(value)}")
        spec = SPECS[value.op]
        args = {key: self.term(raw) for key, raw in value.args.items()}
        for key, default in spec.params:
            if default is REQUIRED and args.get(key) is None:
                raise PatternError(
                    f"pattern {self.name!r} at {line}: {value.op} cannot do without its operand {key!r}, which is None "
                    f"where an optional capture is absent; ask `is not None` first, or write both forms with one_of."
                )
        if _takes_a_number_first(value.node, value.op, args.get("input")):
            raise PatternError(f"pattern {self.name!r} at {line}: {_NUMBER_FIRST.format(op=value.op)}")
        commutative = spec.commutative and args.keys() <= {"input", "other"}  # x + alpha * y is not y + alpha * x
        result = value.dtype if PROMOTED in value.steps else None
        return OpTerm(line, value.op, args, commutative, spec.distinctive, wide, result)

    def _set_flags(self, graph: TermGraph) -> None:
        alive = set(graph.order)
        for node, flag, line in self.flagged:
            key = node if node.target is _choice else self.view.value(node)
            term = self.terms.get(id(key))
            problem = "marks a value that the canonical view folds into another op" if term not in alive else None
            if problem is None and flag == "ordered" and not (isinstance(term, OpTerm) and term.commutative):
                problem = f"takes the result of a commutative op; {term} is none"
            if problem is not None:
                raise PatternError(f"pattern {self.name!r} at {line}: {flag}(...) {problem}.")
            assert term is not None
            if flag == "keep":
                term.keep = True
            elif isinstance(term, OpTerm):
                term.commutative = False

    def _check_choices(self, graph: TermGraph) -> None:
        labels: dict[str, tuple[str, ...]] = {}
        for term in graph.order:
            if not isinstance(term, ChoiceTerm):
                continue
            known = labels.setdefault(term.name, tuple(term.alternatives))
            if known != tuple(term.alternatives):
                raise PatternError(
                    f"pattern {self.name!r} at {term.line}: one_of({term.name!r}) is used twice with different "
                    f"alternatives: {known} and {tuple(term.alternatives)}."
                )
        if not graph.absent:  # without an optional operand two alternatives may coincide; then the first is reported
            self._check_twins(graph)

    def _check_twins(self, graph: TermGraph) -> None:
        """Two labels of a name are the same where every choice of that name has one canonical graph for both."""
        keys = Keys()
        by_name: dict[str, list[ChoiceTerm]] = {}
        for term in graph.order:
            if isinstance(term, ChoiceTerm) and not term.name.startswith("."):
                by_name.setdefault(term.name, []).append(term)
        for name, terms in by_name.items():
            seen: dict[Any, str] = {}
            for label in terms[0].alternatives:
                twin = seen.setdefault(tuple(keys.of(t.alternatives[label]) for t in terms), label)
                if twin != label:
                    raise PatternError(
                        f"pattern {self.name!r} at {terms[0].line}: alternatives {twin!r} and {label!r} of "
                        f"one_of({name!r}) are the same canonical graph; keep one."
                    )

    def _check_several(self, graph: TermGraph) -> None:
        inside = {t for o in graph.outputs if isinstance(o, ManyTerm) for t in o.own}
        for output in graph.outputs:
            if isinstance(output, ManyTerm) and output.element not in output.own:
                raise PatternError(f"pattern {self.name!r} at {output.line}: many(...) does not use its captures.")
        for term in graph.order:
            outside = term not in inside and not isinstance(term, ManyTerm)
            if outside and any(child in inside for child in term.children()):
                raise PatternError(
                    f"pattern {self.name!r} at {term.line}: a value of one sibling of many(...) is used outside it."
                )


def _remove_flags(graph: fx.Graph) -> Iterator[tuple[fx.Node, str, Line]]:
    """Take ``keep`` and ``ordered`` out of a trace; yields what each marked."""
    for node in list(graph.nodes):
        if node.target is _flagged:
            value, flag = node.args
            node.replace_all_uses_with(value)
            yield value, flag, node.meta["line"]


def _required_operands(graph: TermGraph) -> set[str]:
    """Optional captures that stand where an op cannot do without an operand."""
    found: set[str] = set()
    for term in graph.order:
        if isinstance(term, OpTerm):
            required = {key for key, default in SPECS[term.op].params if default is REQUIRED}
            for key, arg in term.args.items():
                if key in required or isinstance(arg, tuple):
                    found.update(t.name for t in terms_in(arg) if isinstance(t, CaptureTerm) and is_optional(t.capture))
        elif isinstance(term, ChoiceTerm | ManyTerm):
            found.update(t.name for t in term.children() if isinstance(t, CaptureTerm))
    return found
