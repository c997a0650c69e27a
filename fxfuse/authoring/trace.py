"""Tracing a reference function: it runs once, on symbols, and what it did is the pattern.

No example tensors: shapes and dtypes seen while tracing are how other systems come to match nothing in silence.
"""

from __future__ import annotations

import contextvars
import inspect
import linecache
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from fxfuse.authoring.captures import Capture, is_optional, is_param
from fxfuse.authoring.terms import CaptureTerm, ChoiceTerm, DtypeTerm, Line, OpTerm, Term, TermGraph
from fxfuse.errors import PatternError, unknown
from fxfuse.view import DtypeOf, Leaf, LeafKind, Value, View
from fxfuse.view.ops import REQUIRED, SPECS

_TRACING: contextvars.ContextVar[_Tracing | None] = contextvars.ContextVar("fxfuse_tracing", default=None)
_CHOSEN: contextvars.ContextVar[Mapping[str, str] | None] = contextvars.ContextVar("fxfuse_chosen", default=None)
_SKIPPED = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)


def one_of(name: str, /, **alternatives: Callable[[], Any]) -> Any:
    """Any one of these spellings. Which one a site has becomes the variant ``{name: label}`` of its match.

    Args:
        name: what the kernel is told the choice by. The same name twice in a pattern is one choice.
        alternatives: label -> function of no arguments; each returns a tensor, or all return tuples of one length.

    In fp32 two alternatives may coincide (casts vanish); then the first declared is the one reported.
    """
    tracing = _TRACING.get()
    if tracing is not None:
        return tracing.choose(name, alternatives)
    chosen = (_CHOSEN.get() or {}).get(name)
    if chosen not in alternatives:
        raise PatternError(unknown(f"choice for one_of({name!r})", chosen, alternatives))
    return alternatives[chosen]()


def run_reference(function: Callable[..., Any], values: Mapping[str, Any], variant: Mapping[str, str]) -> Any:
    """The reference itself, on real tensors or proxies, with the alternatives named by ``variant``."""
    token = _CHOSEN.set(variant)
    try:
        return function(**values)
    finally:
        _CHOSEN.reset(token)


def _choice(name: str, labels: tuple[str, ...], results: tuple[Any, ...]) -> Any:
    raise AssertionError("a marker in a pattern's trace, never called")


class _Tracer(fx.Tracer):
    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        proxy: fx.Proxy = super().create_proxy(*args, **kwargs)
        proxy.node.meta["line"] = author_line()
        return proxy


class _Tracing:
    def __init__(self, name: str) -> None:
        self.name = name
        self.tracer = _Tracer()
        self.graph = fx.Graph()
        self.tracer.graph = self.graph
        self.tracer.root = torch.nn.Module()

    def choose(self, name: str, alternatives: Mapping[str, Callable[[], Any]]) -> Any:
        if len(alternatives) < 2:
            raise PatternError(f"{author_line()}: one_of({name!r}) needs at least two alternatives.")
        results = {label: make() for label, make in alternatives.items()}
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
        captures[parameter.name] = parameter.default
    if not captures:
        raise PatternError(f"pattern {name!r} captures nothing.")
    return captures


def trace(function: Callable[..., Any], captures: Mapping[str, Capture], name: str, line: Line) -> TermGraph:
    """Run ``function`` on symbols and read the result through the view's rules."""
    tracing = _Tracing(name)
    proxies = {}
    for capture_name in captures:
        proxies[capture_name] = tracing.tracer.create_proxy("placeholder", capture_name, (), {})
    token = _TRACING.set(tracing)
    try:
        result = function(**proxies)
    except fx.proxy.TraceError as error:
        raise PatternError(
            f"pattern {name!r} at {_line_of(error)}: a reference function may not branch or loop on a traced value "
            f"({error}); use one_of for alternatives."
        ) from error
    except PatternError:
        raise
    except Exception as error:
        raise PatternError(
            f"pattern {name!r} at {_line_of(error)}: {type(error).__name__}: {error}. A reference function may only "
            f"compute with its captures: no tensor constants, no numbers or lengths of traced values."
        ) from error
    finally:
        _TRACING.reset(token)
    if not isinstance(result, fx.Proxy):
        raise PatternError(f"pattern {name!r} returns {type(result).__name__}; it must return one tensor.")
    return _Terms(name, tracing.graph, captures, line).graph(result.node)


class _Terms:
    """Turns a traced graph into terms, through the same canonical rules as a model's graph."""

    def __init__(self, name: str, graph: fx.Graph, captures: Mapping[str, Capture], line: Line) -> None:
        self.name = name
        kinds = {name: LeafKind.PARAMETER if is_param(c) else LeafKind.INPUT for name, c in captures.items()}
        self.view = View(graph, symbolic=True, leaves=[Leaf(kind, name) for name, kind in kinds.items()])
        self.captures = captures
        self.line = line
        self.terms: dict[int, Term] = {}
        self.alive: list[Any] = []  # ids in `terms` stay valid while their values live

    def graph(self, root: fx.Node) -> TermGraph:
        graph = TermGraph(self.term(root))
        used = {t.name for t in graph.order if isinstance(t, CaptureTerm)}
        unused = [c for c in self.captures if c not in used]
        if unused:
            raise PatternError(f"pattern {self.name!r} never uses its capture {unused[0]!r}; remove it or use it.")
        self._check_choices(graph)
        if not graph.seeds():
            raise PatternError(f"pattern {self.name!r} holds no operation to search for.")
        return graph

    def term(self, raw: Any) -> Any:
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
        marked: Any = node.args  # as `_mark` put them
        name, labels, results = marked
        alternatives = {label: self.term(r) for label, r in zip(labels, results, strict=True)}
        return ChoiceTerm(node.meta["line"], str(name), alternatives)

    def _op(self, value: Value) -> Term:
        if value.leaf is not None:
            name = str(value.node.target)
            return CaptureTerm(self.line, name, self.captures[name])
        line = value.node.meta["line"]
        if not value.known or value.op not in SPECS:
            raise PatternError(
                f"pattern {self.name!r} at {line}: the canonical view does not know {value.op!r} as called here. "
                f"Known ops: {', '.join(sorted(SPECS))}."
            )
        spec = SPECS[value.op]
        args = {key: self.term(raw) for key, raw in value.args.items()}
        required = {key for key, default in spec.params if default is REQUIRED}
        for key, arg in args.items():
            if isinstance(arg, CaptureTerm) and is_optional(arg.capture) and key in required:
                raise PatternError(
                    f"pattern {self.name!r} at {line}: optional capture {arg.name!r} is the {key!r} operand of "
                    f"{value.op}, which cannot be absent; write both forms with one_of."
                )
        return OpTerm(line, value.op, args, spec.commutative, spec.distinctive)

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
            keys: dict[Any, str] = {}
            for label, alternative in term.alternatives.items():
                twin = keys.setdefault(_key(alternative), label)
                if twin != label:
                    raise PatternError(
                        f"pattern {self.name!r} at {term.line}: alternatives {twin!r} and {label!r} of "
                        f"one_of({term.name!r}) are the same canonical graph; keep one."
                    )


def _key(term: Any) -> Any:
    """Structural identity of a term, for telling alternatives apart."""
    if isinstance(term, CaptureTerm):
        return ("capture", term.name)
    if isinstance(term, ChoiceTerm):
        return ("choice", term.name, tuple((label, _key(t)) for label, t in term.alternatives.items()))
    if isinstance(term, DtypeTerm):
        return ("dtype", _key(term.of))
    if isinstance(term, OpTerm):
        args = [(name, _key(arg)) for name, arg in term.args.items()]
        if term.commutative:
            args = [("", key) for key in sorted((key for _, key in args), key=repr)]
        return (term.op, tuple(args))
    return ("literal", repr(term))
