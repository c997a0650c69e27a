"""Complete search for one pattern: backtracking over alternatives, operand order and casts, from a seed outwards.

The seed is a distinctive op that every match contains. Its operands are matched downwards; then the search climbs to
the root through the readers of what is matched so far, and matches every other operand on the way. All choices are
undone on failure, so the first solution that also passes the gates is found wherever one exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from fxfuse.authoring import Dim, Pattern
from fxfuse.authoring.captures import is_input, is_optional, is_param, is_scalar
from fxfuse.authoring.terms import CaptureTerm, ChoiceTerm, DtypeTerm, OpTerm, Term
from fxfuse.match.reasons import Failure
from fxfuse.view import LeafKind, Value, View
from fxfuse.view.ops import SPECS
from fxfuse.view.values import describe_tensor, dtype_name, same_size

STEP_LIMIT = 20_000


class StepLimit(Exception):
    """The search at one seed took more steps than allowed."""


class ConstraintFailed(Exception):
    def __init__(self, message: str, at: Any) -> None:
        super().__init__(message)
        self.at = at


class Match:
    """One place where a pattern holds. Captures are attributes: a Value, a number, or None for an absent one."""

    def __init__(self, view: View, pattern: Pattern, bound: dict[Term, Any], choices: dict[str, str]) -> None:
        self.view = view
        self.pattern = pattern
        self.bound = dict(bound)
        on_path = {t.name for t in bound if isinstance(t, ChoiceTerm)}
        self.variant = {name: choices[name] for name in pattern.choices if name in on_path}
        self.captures: dict[str, Any] = dict.fromkeys(pattern.captures)
        for term, operand in bound.items():
            if isinstance(term, CaptureTerm):
                self.captures[term.name] = operand
        self.root: Value = bound[pattern.terms.root]
        self.interior = list(
            dict.fromkeys(
                v for t, v in bound.items() if isinstance(t, OpTerm) and isinstance(v, Value) and v.leaf is None
            )
        )
        captured = {id(v) for v in self.captures.values()}
        self.interior = [v for v in self.interior if id(v) not in captured]
        order = view.effects.order
        covered = {node for v in self.interior for node in v.nodes}
        self.nodes: tuple[fx.Node, ...] = tuple(sorted(covered, key=order.__getitem__))

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["captures"][name]
        except KeyError:
            raise AttributeError(f"pattern {self.pattern.name!r} captures no {name!r}") from None

    def require(self, condition: bool, message: str, at: Any = None) -> None:
        """Refuse this match, with the message as its reason (code CONSTRAINT), unless the condition holds."""
        if not condition:
            raise ConstraintFailed(message, at)


Accept = Callable[[Match], Failure | None]


class Search:
    """The search for one pattern at one seed value."""

    def __init__(self, view: View, pattern: Pattern, accept: Accept, limit: int = STEP_LIMIT) -> None:
        self.view = view
        self.pattern = pattern
        self.accept = accept
        self.limit = limit
        self.steps = 0
        self.bound: dict[Term, Any] = {}
        self.choices: dict[str, str] = {}
        self.dims: dict[Dim, Any] = {}
        self.dtypes: list[tuple[Any, DtypeTerm, Term]] = []
        self.failures: list[Failure] = []
        self.farthest: dict[str, Failure] = {}
        self.progress = 0

    def run(self, value: Value) -> Match | None:
        """The first accepted match that contains this value, or None with ``failures`` filled, farthest first."""
        try:
            for seed in self.pattern.seeds:
                if seed.op != value.op:
                    continue
                for _ in self.match(seed, value):
                    for _ in self.climb(seed):
                        match = Match(self.view, self.pattern, self.bound, self.choices)
                        refusal = self.accept(match)
                        if refusal is None:
                            return match
                        self.note(refusal)
        except StepLimit:
            self.failures = [Failure("STEP_LIMIT", f"the search took more than {self.limit} steps", operand=value)]
        return None

    # --- failures ---------------------------------------------------------------------------------------------------

    def fail(self, code: str, term: Term, operand: Any, expected: Any, found: Any = None) -> None:
        progress = self._matched()
        known = self.farthest.get(code)
        if progress >= self.progress or known is None or progress > known.progress:
            self.note(Failure(code, expected, found, term, operand), progress)

    def _matched(self) -> int:
        """How many operations are bound; casts do not count, since dtypes may make them vanish."""
        return sum(isinstance(t, OpTerm) and t.op != "cast" for t in self.bound)

    def note(self, failure: Failure, progress: int | None = None) -> None:
        if progress is None:
            progress = self._matched()
        variant = tuple(self.choices.items())
        made = Failure(
            failure.code,
            failure.expected,
            failure.found,
            failure.term,
            failure.operand,
            failure.reader,
            progress,
            variant,
        )
        known = self.farthest.get(failure.code)
        if known is None or progress > known.progress:
            self.farthest[failure.code] = made
        if progress > self.progress:
            self.progress = progress
            self.failures = [made]
        elif progress == self.progress and len(self.failures) < 8:
            # That another op stands there is what every wrong operand order says; anything else says more.
            better = made.code != "OP" and self.failures and self.failures[0].code == "OP"
            self.failures.insert(0 if better else len(self.failures), made)

    # --- downwards --------------------------------------------------------------------------------------------------

    def match(self, term: Term, operand: Any) -> Iterator[None]:
        """Once for each way in which ``operand`` is ``term``."""
        self.steps += 1
        if self.steps > self.limit:
            raise StepLimit
        if term in self.bound:
            if _same(self.bound[term], operand):
                yield
            else:
                self.fail("BINDING", term, operand, self.bound[term], operand)
        elif isinstance(term, CaptureTerm):
            yield from self._capture(term, operand)
        elif isinstance(term, ChoiceTerm):
            yield from self._choice(term, operand)
        elif isinstance(term, OpTerm):
            yield from self._cast(term, operand) if term.op == "cast" else self._op(term, operand)

    def _choice(self, term: ChoiceTerm, operand: Any) -> Iterator[None]:
        decided = self.choices.get(term.name)
        self.bound[term] = operand
        for label, alternative in term.alternatives.items():
            if decided is not None and label != decided:
                continue
            self.choices[term.name] = label
            yield from self.match(alternative, operand)
        if decided is None:
            self.choices.pop(term.name, None)
        else:
            self.choices[term.name] = decided
        self.bound.pop(term, None)

    def _op(self, term: OpTerm, operand: Any) -> Iterator[None]:
        if not isinstance(operand, Value) or operand.op != term.op or not operand.known:
            self.fail("OP", term, operand, term.op, operand)
            return
        extra = [name for name in operand.args if name not in term.args]
        if extra:
            name, given = extra[0], self.view.operand(operand.args[extra[0]])
            code = "ARITY" if isinstance(given, Value) else "LITERAL"
            self.fail(code, term, operand, f"{term.op} without {name}", f"{name}={given}")
            return
        self.bound[term] = operand
        raw = operand.args
        pairs = [(name, arg, raw.get(name)) for name, arg in term.args.items()]
        yield from self._args(term, operand, pairs)
        if term.commutative and raw.get("input") is not raw.get("other"):
            swapped = {"input": "other", "other": "input"}
            pairs = [(name, arg, raw.get(swapped.get(name, name))) for name, arg in term.args.items()]
            yield from self._args(term, operand, pairs)
        self.bound.pop(term, None)

    def _args(self, term: OpTerm, operand: Value, pairs: list[tuple[str, Any, Any]]) -> Iterator[None]:
        if not pairs:
            yield
            return
        (name, wanted, raw), rest = pairs[0], pairs[1:]
        given = self.view.operand(raw)
        if isinstance(wanted, CaptureTerm) and is_optional(wanted.capture) and given is None:
            if wanted in self.bound:
                if self.bound[wanted] is None:
                    yield from self._args(term, operand, rest)
                return
            self.bound[wanted] = None
            yield from self._args(term, operand, rest)
            self.bound.pop(wanted, None)
        elif isinstance(wanted, Term):
            if given is None:
                self.fail("ARITY", term, operand, f"{term.op} with {name}", f"none (node {operand.node.name})")
                return
            for _ in self.match(wanted, given):
                yield from self._args(term, operand, rest)
        elif equal_literal(wanted, given):
            yield from self._args(term, operand, rest)
        else:
            default = dict(SPECS[term.op].params).get(name)
            found = given if given is not None else default
            self.fail("LITERAL", term, operand, f"{term.op} {name}={wanted}", f"{name}={_literal(found)}")

    def _cast(self, term: OpTerm, operand: Any) -> Iterator[None]:
        """A cast matches the cast, or its absence where the operand has that dtype already."""
        source, dtype = term.args["input"], term.args["dtype"]
        if not isinstance(operand, Value):
            self.fail("OP", term, operand, "cast", operand)
            return
        ways = []
        if operand.op == "cast" and operand.known:
            ways.append((operand.args["dtype"], self.view.operand(operand.args["input"])))
        if operand.dtype is not None:  # what looks like the pattern's cast may be the input's own
            ways.append((operand.dtype, operand))
        for found, below in ways:
            if self._dtype(found, dtype, term, operand):
                self.bound[term] = operand
                yield from self.match(source, below)
                self.bound.pop(term, None)
                self._drop_dtype(term)

    def _dtype(self, found: Any, wanted: Any, term: Term, operand: Any) -> bool:
        """Whether a dtype fits; one that depends on an unbound capture is remembered and checked when all is bound."""
        if isinstance(wanted, DtypeTerm):
            if wanted.of not in self.bound:
                self.dtypes.append((found, wanted, term))
                return True
            wanted = getattr(self.bound[wanted.of], "dtype", None)
        if found == wanted:
            return True
        self.fail("DTYPE", term, operand, f"a cast to {dtype_name(wanted)}", dtype_name(found))
        return False

    def _drop_dtype(self, term: Term) -> None:
        if self.dtypes and self.dtypes[-1][2] is term:
            self.dtypes.pop()

    def _capture(self, term: CaptureTerm, operand: Any) -> Iterator[None]:
        capture: Any = term.capture  # its fields depend on its kind, which is asked first
        if is_scalar(capture):
            if not _is_scalar(operand, capture.type):
                self.fail("LITERAL", term, operand, f"a {capture.type.__name__} for {term.name}", operand)
                return
            self.bound[term] = operand
            yield
            self.bound.pop(term, None)
            return
        if not isinstance(operand, Value) or operand.owner is not None:
            self.fail("OP", term, operand, f"a tensor for {term.name}", operand)
            return
        if is_param(capture):
            problem = _not_a_parameter(operand)
            if problem is not None:
                self.fail("NOT_A_PARAM", term, operand, term.name, problem)
                return
        elif is_input(capture) and operand.shape is None and not isinstance(operand.meta, torch.Tensor):
            self.fail("OP", term, operand, f"a tensor for {term.name}", operand)
            return
        undo = self._unify(term, operand)
        if undo is None:
            return
        self.bound[term] = operand
        yield
        self.bound.pop(term, None)
        for dim in undo:
            self.dims.pop(dim, None)

    def _unify(self, term: CaptureTerm, operand: Value) -> list[Dim] | None:
        """Bind the capture's sizes; None (with the reason noted) where one does not fit."""
        capture: Any = term.capture  # of a tensor: it has sizes
        dims = capture.dims
        shape = operand.shape
        if shape is None:
            self.fail("SHAPE", term, operand, f"{term.name}{_sizes(dims)}", "a tensor of unknown shape")
            return None
        if dims[:1] == (...,):
            dims = dims[1:]
            fits = len(shape) >= len(dims)
            shape = shape[len(shape) - len(dims) :]
        else:
            fits = len(shape) == len(dims)
        if not fits:
            self.fail("SHAPE", term, operand, f"{term.name}{_sizes(capture.dims)}", describe_tensor(operand))
            return None
        added: list[Dim] = []
        for dim, size in zip(dims, shape, strict=True):
            known = self.dims.get(dim) if isinstance(dim, Dim) else dim
            if known is None:
                self.dims[dim] = size
                added.append(dim)
            elif not same_size(known, size):
                for d in added:
                    self.dims.pop(d, None)
                wanted = f"{term.name}{_sizes(capture.dims)} with {dim}={known}"
                self.fail("SHAPE", term, operand, wanted, describe_tensor(operand))
                return None
        return added

    # --- upwards ----------------------------------------------------------------------------------------------------

    def climb(self, term: Term) -> Iterator[None]:
        """Once for each way in which what is bound extends to a whole match."""
        if term is self.pattern.terms.root:
            if self._dtypes_hold() and self.bound[term].owner is None:
                yield
            return
        for parent in self.pattern.terms.parents[term]:
            if isinstance(parent, ChoiceTerm):
                yield from self._climb_choice(parent, term)
            else:
                yield from self._climb_op(parent, term)

    def _climb_choice(self, parent: ChoiceTerm, term: Term) -> Iterator[None]:
        if parent in self.bound:
            if _same(self.bound[parent], self.bound[term]):
                yield from self.climb(parent)
            return
        decided = self.choices.get(parent.name)
        for label, alternative in parent.alternatives.items():
            if alternative is not term or decided not in (None, label):
                continue
            self.choices[parent.name] = label
            self.bound[parent] = self.bound[term]
            yield from self.climb(parent)
            self.bound.pop(parent, None)
            if decided is None:
                self.choices.pop(parent.name, None)

    def _climb_op(self, parent: Term, term: Term) -> Iterator[None]:
        assert isinstance(parent, OpTerm)
        value = self.bound[term]
        if parent.op == "cast" and self._dtype(value.dtype, parent.args["dtype"], parent, value):
            self.bound[parent] = value
            yield from self.climb(parent)
            self.bound.pop(parent, None)
            self._drop_dtype(parent)
        readers = self.view.users(value)
        for reader in readers:
            if reader.op != parent.op or not reader.known:
                self.fail("OP", parent, reader, parent.op, reader)
                continue
            for _ in self.match(parent, reader):
                yield from self.climb(parent)
        if not readers:
            self.fail("OP", parent, value, f"{parent.op} to read {value}", "no reader but the graph's output")

    def _dtypes_hold(self) -> bool:
        for found, wanted, term in self.dtypes:
            dtype = getattr(self.bound.get(wanted.of), "dtype", None)
            if dtype != found:
                self.fail("DTYPE", term, self.bound.get(term), f"a cast to {dtype_name(dtype)}", dtype_name(found))
                return False
        return True


def _same(a: Any, b: Any) -> bool:
    return a is b or (not isinstance(a, Value) and not isinstance(b, Value) and equal_literal(a, b))


def equal_literal(wanted: Any, given: Any) -> bool:
    """Literals are exact; ``2`` and ``2.0`` are one number, ``True`` and ``1`` are not."""
    if isinstance(wanted, bool) or isinstance(given, bool):
        return wanted is given
    if isinstance(wanted, Value) or isinstance(given, Value):
        return False
    return bool(wanted == given)


def _is_scalar(operand: Any, kind: type) -> bool:
    if isinstance(operand, bool):
        return kind is bool
    if isinstance(operand, int | float):
        return kind is float or (kind is int and isinstance(operand, int))
    if isinstance(operand, Value):  # a number that differs from call to call: a symbol of the graph
        example = operand.node.meta.get("example_value", operand.node.meta.get("val"))
        return isinstance(example, torch.SymFloat if kind is float else torch.SymInt)
    return False


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _not_a_parameter(value: Value) -> str | None:
    """What stands where a parameter must be, or None where a plain one does."""
    if value.leaf is None:
        return f"{value.op} ({value.node.name}), computed in the graph"
    if value.leaf.kind not in (LeafKind.PARAMETER, LeafKind.BUFFER):
        return f"the {value.leaf.kind.value} {value.leaf.path or value.node.name}"
    meta = value.meta
    if isinstance(meta, torch.Tensor) and torch.utils._python_dispatch.is_traceable_wrapper_subclass(meta):
        return f"{value.leaf.path}, a {type(meta).__name__}"
    return None


def _literal(value: Any) -> str:
    return str(value) if isinstance(value, Value) else repr(value)


def _sizes(dims: Any) -> str:
    return f"[{', '.join('...' if d is ... else str(d) for d in dims)}]"
