"""Complete search for one pattern: backtracking over alternatives, operand order and casts, from a seed outwards.

The seed is a distinctive op that every match contains. Its operands are matched downwards; then the search climbs to
the output through the readers of what is matched so far, and matches every other operand on the way; further outputs
are reached the same way from what they share. All choices are undone on failure, so a solution that also passes the
gates is found wherever one exists. What could never match there, whatever else is bound, is known beforehand
(`Feasible`), so that alternatives are not tried over and over in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from fxfuse.authoring import Dim, Pattern
from fxfuse.authoring.captures import is_input, is_optional
from fxfuse.authoring.sizes import evaluate, solve
from fxfuse.authoring.terms import CaptureTerm, ChoiceTerm, DtypeTerm, ManyTerm, OpTerm, Term, TermGraph
from fxfuse.match.feasible import SWAPPED, Feasible, equal_literal, is_a_scalar, not_a_parameter
from fxfuse.match.matching import Match
from fxfuse.match.reasons import OF_GATES, Failure, in_words
from fxfuse.safeguards import safeguard
from fxfuse.view import Value, View
from fxfuse.view.ops import SPECS
from fxfuse.view.rules.casts import EXACT_WIDENINGS
from fxfuse.view.values import describe_tensor, dtype_name, same_size
from fxfuse.view.view import operands_in

STEP_LIMIT = 20_000
PROMOTING = frozenset({"add", "sub", "mul", "div"})
"""Operations that compute in the dtype to which their operands promote."""

MOST_MATCHES = 16
"""How many matches with several outputs one seed value may be part of (siblings in pairs), nearest first."""

LITERALS = safeguard("match.literal", "a constant of the graph that differs from the pattern's")
DTYPES = safeguard("match.dtype", "a cast to another dtype than the pattern's")
SIZES = safeguard("match.size", "a tensor whose sizes do not fit the capture's")
WIDE = safeguard("match.wide", "a formula of the pattern that rounds between its steps, in bf16, taken for one op")
WITHOUT = safeguard("match.without", "operands that are absent together, of which the reference makes more than that")
SAME = safeguard("match.same", "two places that must hold one value holding two")

Accept = Callable[[Match], Failure | None]


class StepLimit(Exception):
    """The search at one seed took more steps than allowed."""


class Search:
    """The search for one form of a pattern at one seed value."""

    def __init__(
        self, view: View, pattern: Pattern, form: TermGraph, feasible: Feasible, accept: Accept, limit: int = STEP_LIMIT
    ) -> None:
        self.view = view
        self.pattern = pattern
        self.form = form
        self.feasible = feasible
        self.accept = accept
        self.limit = limit
        self.steps = 0
        self.bound: dict[Term, Any] = {}
        self.choices: dict[str, str] = {}
        self.dims: dict[Dim, Any] = {}
        self.count = 0  # operations bound; casts do not count, since dtypes may make them vanish
        self._trail: list[tuple[Any, Any]] = []
        self._dtypes: list[tuple[Any, DtypeTerm, Term]] = []
        self._sizes: list[tuple[CaptureTerm, Any, Any, Value]] = []
        self._refused: dict[Any, Failure] = {}
        self.failures: list[Failure] = []
        self.farthest: dict[str, Failure] = {}
        self.progress = 0

    def run(self, value: Value, *, every: bool = False) -> list[Match]:
        """The first accepted match that contains this value, or ``every`` one; ``failures`` are filled where none is.

        Matches with the same outputs are one match; the first found is taken.
        """
        found: dict[frozenset[int], Match] = {}
        most = (MOST_MATCHES if self.pattern.has_several_outputs else self.limit) if every else 1
        try:
            for seed in self.form.seeds:
                if seed.op != value.op:
                    continue
                for match in self._matches(seed, value):
                    found.setdefault(frozenset(id(v) for v in match.outputs), match)
                    if len(found) == most:
                        return list(found.values())
                self._undo(0)
        except StepLimit:
            if not found:
                what = f"the search took more than {self.limit} steps"
                refused = [f for f in self.failures if f.code in OF_GATES]
                self.failures = [*refused, Failure("STEP_LIMIT", what, operand=value)]
        return list(found.values())

    def _matches(self, seed: OpTerm, value: Value) -> Iterator[Match]:
        accepted: set[tuple[Any, ...]] = set()
        for _ in self.match(seed, value):
            for _ in self.climb(seed, self.form.primary):
                for _ in self._outputs(self.form.outputs):
                    outcome = self._outcome()
                    if outcome in accepted:
                        continue
                    match = self._finished()
                    if match is not None:
                        accepted.add(outcome)
                        yield match

    def _outcome(self) -> tuple[Any, ...]:
        """What decides the outputs of a match: they are bound, or what siblings share and how they are spelled is."""
        form = self.form
        return (*(id(self.bound.get(t)) for t in form.deciding), *map(self.choices.get, form.choices_of_siblings))

    def _finished(self) -> Match | None:
        """The match that is bound now, where everything settled late holds and it is accepted."""
        mark = len(self._trail)
        made = self._settled()
        self._undo(mark)
        if made is None:
            return None
        # Without constraints the gates look at nodes and captures, not at which is which: refused once is refused.
        key: Any = None
        if not self.pattern.constraints:
            operands, results = made.captured_values(), made.outputs
            key = (made.nodes, made.staying, frozenset(map(id, operands)), frozenset(map(id, results)))
        refusal = self._refused.get(key) if key is not None else None
        if refusal is None:
            refusal = self.accept(made)
        if refusal is None:
            return made
        if key is not None:
            self._refused[key] = refusal
        self.note(refusal)
        return None

    def settle(self, bound: Mapping[Term, Any], choices: Mapping[str, str], dims: Mapping[Dim, Any]) -> Match | None:
        """The match of what is bound, siblings gathered, before it is accepted; None where they are too few."""
        self.bound, self.choices, self.dims = dict(bound), dict(choices), dict(dims)
        return self._settled()

    def _settled(self) -> Match | None:
        if not (self._dtypes_hold() and self._sizes_hold() and self._outputs_hold()):
            return None
        siblings: dict[ManyTerm, list[dict[Term, Any]]] = {}
        for output in self.form.outputs:
            if isinstance(output, ManyTerm):
                gathered = self._gather(output)
                if gathered is None:
                    return None
                siblings[output] = gathered
        own = {t for output in siblings for t in output.own}
        bound = {t: v for t, v in self.bound.items() if t not in own}
        every = [bound, *(terms for group in siblings.values() for terms in group)]
        absent = frozenset(t.name for terms in every for t, v in terms.items() if type(t) is CaptureTerm and v is None)
        if not WITHOUT(self.pattern.is_form_without(self.form, absent)):
            what = f"a reference that only lacks operands without {', '.join(sorted(absent))}"
            self.fail(
                "ARITY", self.form.primary, self.bound.get(self.form.primary), what, "one that computes otherwise"
            )
            return None
        return Match(self.view, self.pattern, self.form, bound, self.choices, self.dims, siblings)

    # --- what is bound ----------------------------------------------------------------------------------------------

    def _bind(self, term: Term, operand: Any) -> None:
        self._set(self.bound, term, operand)
        if type(term) is OpTerm and term.op != "cast":
            self.count += 1

    def _set(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        table[key] = value
        self._trail.append((table, key))

    def _later(self, checks: list[Any], check: Any) -> None:
        """Note what can be checked only when all is bound."""
        checks.append(check)
        self._trail.append((checks, -1))

    def _undo(self, mark: int) -> None:
        trail = self._trail
        while len(trail) > mark:
            table, key = trail.pop()
            del table[key]
            if type(key) is OpTerm and table is self.bound and key.op != "cast":
                self.count -= 1

    # --- failures ---------------------------------------------------------------------------------------------------

    def fail(self, code: str, term: Term, operand: Any, expected: Any, found: Any = None) -> None:
        known = self.farthest.get(code)
        if self.count >= self.progress or known is None or self.count > known.progress:
            self.note(Failure(code, expected, found, term, operand))

    def note(self, failure: Failure) -> None:
        progress = self.count
        made = Failure(
            failure.code,
            failure.expected,
            failure.found,
            failure.term,
            failure.operand,
            failure.reader,
            progress,
            tuple(self.choices.items()),
        )
        known = self.farthest.get(failure.code)
        if known is None or progress > known.progress:
            self.farthest[failure.code] = made
        if progress > self.progress or not self.failures:
            self.progress = progress
            self.failures = [made]
        elif progress == self.progress and len(self.failures) < 8:
            # That another op stands there is what every wrong operand order says; anything else says more.
            better = made.code != "OP" and self.failures[0].code == "OP"
            self.failures.insert(0 if better else len(self.failures), made)

    def _step(self) -> None:
        self.steps += 1
        if self.steps > self.limit:
            raise StepLimit

    # --- downwards --------------------------------------------------------------------------------------------------

    def match(self, term: Term, operand: Any) -> Iterator[None]:
        """Once for each way in which ``operand`` is ``term``; what it binds is undone when it is asked for the next."""
        self._step()
        if term in self.bound:
            if SAME(_same(self.bound[term], operand)):
                yield
            else:
                self.fail("BINDING", term, operand, self.bound[term], operand)
        elif type(term) is OpTerm:
            yield from self._cast(term, operand) if term.op == "cast" else self._op(term, operand)
        elif type(term) is ChoiceTerm:
            yield from self._choice(term, operand)
        elif type(term) is CaptureTerm:
            mark = len(self._trail)
            if self._capture(term, operand):
                yield
            self._undo(mark)

    def _choice(self, term: ChoiceTerm, operand: Any) -> Iterator[None]:
        decided = self.choices.get(term.name)
        for label, alternative in term.alternatives.items():
            if decided is not None and label != decided:
                continue
            mark = len(self._trail)
            self._bind(term, operand)
            if decided is None:
                self._set(self.choices, term.name, label)
            for _ in self.match(alternative, operand):
                yield
            self._undo(mark)

    def _op(self, term: OpTerm, operand: Any) -> Iterator[None]:
        if type(operand) is not Value or operand.op != term.op or not operand.known:
            self.fail("OP", term, operand, term.op, operand)
            return
        if term.wide and not WIDE(operand.dtype in (torch.float32, torch.float64)):
            self.fail(
                "DTYPE", term, operand, f"{term.op} in f32, as it is written step by step", dtype_name(operand.dtype)
            )
            return
        if term.result is not None and not DTYPES(operand.dtype == term.result):
            self.fail("DTYPE", term, operand, f"{term.op} in {dtype_name(term.result)}", dtype_name(operand.dtype))
            return
        extra = [name for name in operand.args if name not in term.args]
        if extra:
            name, given = extra[0], self.view.operand(operand.args[extra[0]])
            code = "ARITY" if isinstance(given, Value) else "LITERAL"
            self.fail(code, term, operand, f"{term.op} without {name}", f"{name}={given}")
            return
        given, resolve = operand.args, self.view.operand
        for names in self._orders(term, operand):
            pairs = [(name, arg, resolve(given.get(names.get(name, name)))) for name, arg in term.args.items()]
            mark = len(self._trail)
            self._bind(term, operand)
            for _ in self._args(term, operand, pairs, 0):
                yield
            self._undo(mark)

    def _orders(self, term: OpTerm, operand: Value) -> list[dict[str, str]]:
        """The operand orders worth trying, as renamings of the graph's arguments."""
        straight: dict[str, str] = {}
        raw = operand.args
        if not term.commutative or raw.get("input") is raw.get("other"):
            return [straight]
        fits, swapped = self.feasible.orders(term, operand)
        if fits and swapped and not self.pattern.constraints and self.feasible.symmetric(self.form, term):
            return [straight]
        return [straight] if fits and not swapped else [SWAPPED] if swapped and not fits else [straight, SWAPPED]

    def _args(self, term: OpTerm, operand: Any, pairs: list[tuple[str, Any, Any]], at: int) -> Iterator[None]:
        """Once for each way in which the arguments from ``at`` on fit. Most fit in one way or not at all."""
        mark = len(self._trail)
        while at < len(pairs):
            name, wanted, given = pairs[at]
            at += 1
            kind = type(wanted)
            if kind is CaptureTerm:
                if not self._captured(term, operand, name, wanted, given):
                    break
            elif kind is OpTerm or kind is ChoiceTerm:
                if given is None:
                    self.fail("ARITY", term, operand, f"{term.op} with {name}", f"none (node {operand.node.name})")
                    break
                for target in self._targets(term, operand, wanted, given):
                    for _ in self.match(target, given):
                        yield from self._args(term, operand, pairs, at)
                        if not all(self.feasible(w, g) for _, w, g in pairs[at:] if g is not None):
                            break  # the rest fails however this operand is matched, and has said why
                break
            elif kind is tuple and isinstance(given, tuple) and len(wanted) == len(given):
                items = [(name, w, self.view.operand(g)) for w, g in zip(wanted, given, strict=True)]
                yield from self._args(term, operand, [*items, *pairs[at:]], 0)
                break
            elif not LITERALS(equal_literal(wanted, given) and self._promotes_alike(wanted, given, operand)):
                found = given if given is not None else SPECS[term.op].defaults.get(name)
                self.fail("LITERAL", term, operand, f"{term.op} {name}={in_words(wanted)}", f"{name}={_literal(found)}")
                break
        else:
            yield
        self._undo(mark)

    def _targets(self, term: OpTerm, operand: Value, wanted: Term, given: Any) -> tuple[Term, ...]:
        """The term that an operand must be; of a cast also what it casts, where the operation itself promotes that.

        ``x.float() * y`` is ``x * y`` where ``y`` is in fp32 and has dimensions: so T5 writes its norm.
        """
        if type(wanted) is not OpTerm or wanted.op != "cast" or term.op not in PROMOTING:
            return (wanted,)
        dtype, source = wanted.args["dtype"], wanted.args["input"]
        if not (isinstance(dtype, torch.dtype) and type(given) is Value and operand.dtype is dtype is not given.dtype):
            return (wanted,)
        others = [self.view.operand(raw) for raw in operands_in(operand.args)]
        wide = any(other is not given and other.dtype is dtype and other.shape != () for other in others)
        return (wanted, source) if DTYPES(wide and (given.dtype, dtype) in EXACT_WIDENINGS) else (wanted,)

    def _captured(self, term: OpTerm, operand: Any, name: str, wanted: CaptureTerm, given: Any) -> bool:
        """Whether this argument fits the capture, which is bound then."""
        if given is None:
            if wanted.capture.scalar:
                given = SPECS[term.op].defaults.get(name)
            if is_optional(wanted.capture) and self.bound.get(wanted) is None:
                if wanted not in self.bound:
                    self._bind(wanted, None)
                return True
            if given is None:
                self.fail("ARITY", term, operand, f"{term.op} with {name}", f"none (node {operand.node.name})")
                return False
        self._step()
        if wanted not in self.bound:
            return self._capture(wanted, given)
        if SAME(_same(self.bound[wanted], given)):
            return True
        self.fail("BINDING", wanted, given, self.bound[wanted], given)
        return False

    def _promotes_alike(self, wanted: Any, given: Any, operand: Value) -> bool:
        """Whether ``2`` and ``2.0`` are one operand here: beside integer tensors they give different dtypes."""
        if isinstance(wanted, float) == isinstance(given, float):
            return True
        dtypes = [getattr(self.view.operand(raw), "dtype", None) for raw in operands_in(operand.args)]
        return any(d.is_floating_point or d.is_complex for d in dtypes if isinstance(d, torch.dtype))

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
            mark = len(self._trail)
            if self._dtype(found, dtype, term, operand):
                self._bind(term, operand)
                for _ in self.match(source, below):
                    yield
            self._undo(mark)

    def _dtype(self, found: Any, wanted: Any, term: Term, operand: Any) -> bool:
        """Whether a dtype fits; one that depends on an unbound capture is remembered and checked when all is bound."""
        if isinstance(wanted, DtypeTerm):
            if wanted.of not in self.bound:
                self._later(self._dtypes, (found, wanted, term))
                return True
            wanted = getattr(self.bound[wanted.of], "dtype", None)
        if DTYPES(found == wanted):
            return True
        self.fail("DTYPE", term, operand, f"a cast to {dtype_name(wanted)}", dtype_name(found))
        return False

    def _capture(self, term: CaptureTerm, operand: Any) -> bool:
        """Whether an operand fits a capture, which is bound then."""
        capture: Any = term.capture  # its fields depend on its kind, which is asked first
        if capture.scalar:
            if not is_a_scalar(operand, capture.type):
                self.fail("LITERAL", term, operand, f"a {capture.type.__name__} for {term.name}", _literal(operand))
                return False
            self._bind(term, operand)
            return True
        if not isinstance(operand, Value) or operand.owner is not None:
            self.fail("OP", term, operand, f"a tensor for {term.name}", operand)
            return False
        if capture.param:
            problem = not_a_parameter(operand)
            if problem is not None:
                self.fail("NOT_A_PARAM", term, operand, term.name, problem)
                return False
        elif is_input(capture) and operand.shape is None and not isinstance(operand.meta, torch.Tensor):
            self.fail("OP", term, operand, f"a tensor for {term.name}", operand)
            return False
        if capture.dtypes is not None and not DTYPES(operand.dtype in capture.dtypes):
            wanted = " or ".join(map(dtype_name, capture.dtypes))
            self.fail("DTYPE", term, operand, f"{term.name} in {wanted}", dtype_name(operand.dtype))
            return False
        if not self._unify(term, operand):
            return False
        self._bind(term, operand)
        return True

    def _unify(self, term: CaptureTerm, operand: Value) -> bool:
        """Bind the capture's sizes; False (with the reason noted) where one does not fit."""
        capture: Any = term.capture  # of a tensor: it has sizes
        dims, shape = capture.dims, operand.shape
        if shape is None:
            self.fail("SHAPE", term, operand, f"{term.name}{_sizes(dims)}", "a tensor of unknown shape")
            return False
        if dims[:1] == (...,):
            dims = dims[1:]
            fits = len(shape) >= len(dims)
            shape = shape[len(shape) - len(dims) :]
        else:
            fits = len(shape) == len(dims)
        if not fits:
            self.fail("SHAPE", term, operand, f"{term.name}{_sizes(capture.dims)}", describe_tensor(operand))
            return False
        for dim, size in zip(dims, shape, strict=True):
            known = evaluate(dim, self.dims)
            if known is None and isinstance(dim, Dim):
                self._set(self.dims, dim, size)
            elif known is None:
                self._later(self._sizes, (term, dim, size, operand))
            elif not SIZES(same_size(known, size)):
                self._fail_size(term, operand, dim, known)
                return False
        return True

    def _fail_size(self, term: CaptureTerm, operand: Value, dim: Any, known: Any) -> None:
        capture: Any = term.capture
        wanted = f"{term.name}{_sizes(capture.dims)} with {dim}={known}"
        self.fail("SHAPE", term, operand, wanted, describe_tensor(operand))

    # --- upwards ----------------------------------------------------------------------------------------------------

    def climb(self, term: Term, target: Term) -> Iterator[None]:
        """Once for each way in which what is bound extends from ``term`` to the output ``target``."""
        if term is target:
            yield
            return
        under = self.form.under[target]
        for parent in self.form.parents[term]:
            if parent not in under:
                continue
            if isinstance(parent, ChoiceTerm):
                yield from self._climb_choice(parent, term, target)
            elif isinstance(parent, OpTerm):
                yield from self._climb_op(parent, term, target)

    def _climb_choice(self, parent: ChoiceTerm, term: Term, target: Term) -> Iterator[None]:
        if parent in self.bound:
            if _same(self.bound[parent], self.bound[term]):
                yield from self.climb(parent, target)
            return
        decided = self.choices.get(parent.name)
        for label, alternative in parent.alternatives.items():
            if alternative is not term or decided not in (None, label):
                continue
            mark = len(self._trail)
            if decided is None:
                self._set(self.choices, parent.name, label)
            self._bind(parent, self.bound[term])
            for _ in self.climb(parent, target):
                yield
            self._undo(mark)

    def _climb_op(self, parent: OpTerm, term: Term, target: Term) -> Iterator[None]:
        value = self.bound[term]
        if not isinstance(value, Value):
            return
        if parent in self.bound:
            yield from self.climb(parent, target)
            return
        if parent.op == "cast":
            mark = len(self._trail)
            if self._dtype(value.dtype, parent.args["dtype"], parent, value):
                self._bind(parent, value)
                for _ in self.climb(parent, target):
                    yield
            self._undo(mark)
        readers = self._nearest_first(self.view.users(value), target)
        for reader in _largest_first(readers):
            if reader.op != parent.op or not reader.known:
                self.fail("OP", parent, reader, parent.op, reader)
                continue
            mark = len(self._trail)
            for _ in self.match(parent, reader):
                for _ in self.climb(parent, target):
                    yield
            self._undo(mark)
        if not readers:
            self.fail("OP", parent, value, f"{parent.op} to read {value}", "no reader but the graph's output")

    def _nearest_first(self, readers: Sequence[Value], target: Term) -> Sequence[Value]:
        """For a further output, those that come after the first output before those that come before it."""
        first = self.bound.get(self.form.primary)
        if first is None or target is self.form.primary or len(readers) < 2:
            return readers
        order = self.view.effects.order
        return sorted(readers, key=lambda r: order[r.node] < order[first.node])

    # --- the other outputs ------------------------------------------------------------------------------------------

    def _outputs(self, outputs: Sequence[Term]) -> Iterator[None]:
        """Once for each way in which these outputs are there, too; one may be within reach only after another."""
        missing = [output for output in outputs if not self._is_reached(output)]
        if not missing:
            yield
            return
        for output in missing:
            root = output.element if isinstance(output, ManyTerm) else output
            anchors = self._anchors(root)
            for anchor in anchors:
                mark = len(self._trail)
                for _ in self.climb(anchor, root):
                    yield from self._outputs([o for o in missing if o is not output])
                self._undo(mark)
            if anchors:
                return

    def _is_reached(self, output: Term) -> bool:
        """Whether an output is bound; of siblings, which are gathered when all else is settled, what they share."""
        if not isinstance(output, ManyTerm):
            return output in self.bound
        return output.element in self.bound or all(t in self.bound for t in output.shared)

    def _anchors(self, output: Term) -> list[Term]:
        """What is bound of an output already, as near to it as can be: it is reached from there."""
        under = self.form.under[output]
        bound = [t for t in self.form.order if t in under and isinstance(self.bound.get(t), Value)]
        return [t for t in reversed(bound) if any(p in under and p not in self.bound for p in self.form.parents[t])]

    def _gather(self, output: ManyTerm) -> list[dict[Term, Any]] | None:
        """What each sibling binds for itself, in graph order; None (with the reason noted) where there are too few."""
        own, element = output.own, output.element
        hidden = {t: self.bound.pop(t) for t in own if t in self.bound}
        shared = {d for t in self.bound if isinstance(t, CaptureTerm) for d in dims_of(t)}
        private = {d: self.dims.pop(d) for d in list(self.dims) if d not in shared}
        late, self._dtypes, self._sizes = (self._dtypes, self._sizes), [], []
        found: dict[int, dict[Term, Any]] = {}
        for anchor in self._anchors(element):
            mark = len(self._trail)
            for _ in self.climb(anchor, element):
                value = self.bound[element]
                if id(value) not in found and value.owner is None and self._dtypes_hold() and self._sizes_hold():
                    found[id(value)] = {t: v for t, v in self.bound.items() if t in own}
            self._undo(mark)
        self._dtypes, self._sizes = late
        self.bound.update(hidden)
        self.dims.update(private)
        order = self.view.effects.order
        # `x @ w.t()` in `x @ w.t() + b` is a part of that sibling, and none itself.
        inside = {node for terms in found.values() for node in terms[element].absorbed}
        siblings = [terms for terms in found.values() if terms[element].node not in inside]
        siblings.sort(key=lambda terms: order[terms[element].node])
        if len(siblings) < output.least:
            at = siblings[0][element] if siblings else hidden.get(element)
            self.fail("ARITY", output, at, f"at least {output.least} siblings", str(len(siblings)))
            return None
        return siblings

    # --- what is settled when all is bound --------------------------------------------------------------------------

    def _dtypes_hold(self) -> bool:
        for found, wanted, term in self._dtypes:
            dtype = getattr(self.bound.get(wanted.of), "dtype", None)
            if not DTYPES(dtype == found):
                self.fail("DTYPE", term, self.bound.get(term), f"a cast to {dtype_name(dtype)}", dtype_name(found))
                return False
        return True

    def _sizes_hold(self) -> bool:
        """Whether relations of sizes hold; a dimension that only relations name is solved for."""
        pending = list(self._sizes)
        while pending:
            rest = []
            for entry in pending:
                term, dim, size, operand = entry
                known = evaluate(dim, self.dims)
                solved = solve(dim, size, self.dims) if known is None else None
                if solved is not None:
                    self._set(self.dims, *solved)
                elif known is None:
                    rest.append(entry)
                elif not SIZES(same_size(known, size)):
                    self._fail_size(term, operand, dim, known)
                    return False
            if len(rest) == len(pending):
                term, dim, size, operand = rest[0]
                capture: Any = term.capture
                what = f"{term.name}{_sizes(capture.dims)} with a size that is {dim} for certain"
                self.fail("SHAPE", term, operand, what, describe_tensor(operand))
                return False
            pending = rest
        return True

    def _outputs_hold(self) -> bool:
        """Outputs are results of nodes, and two of them are one value only where a cast between them vanished."""
        seen: dict[int, Term] = {}
        for term in self.form.outputs:
            if isinstance(term, ManyTerm):
                continue
            value = self.bound[term]
            if not isinstance(value, Value) or value.owner is not None or value.leaf is not None:
                self.fail("OP", term, value, f"{term} as a result of its own", value)
                return False
            first = seen.setdefault(id(value), term)
            if first is not term and not (_is_cast(first) or _is_cast(term)):
                self.count -= 1  # one of the two was not found
                self.fail("OP", term, value, f"a further {value.op}", "none")
                self.count += 1
                return False
        return True


def dims_of(term: CaptureTerm) -> Iterator[Dim]:
    capture: Any = term.capture
    return iter(()) if capture.scalar else capture.named_dims()


def _is_cast(term: Term) -> bool:
    if isinstance(term, ChoiceTerm):
        return any(map(_is_cast, term.alternatives.values()))
    return isinstance(term, OpTerm) and term.op == "cast"


def _largest_first(readers: Sequence[Value]) -> Sequence[Value]:
    """Those that stand for another reader's node, too, before that one: ``x @ w.t() + b`` before its product."""
    nodes = {r.node for r in readers}
    return sorted(readers, key=lambda r: nodes.isdisjoint(r.absorbed)) if len(nodes) > 1 else readers


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Value) or isinstance(b, Value):
        return a is b
    return isinstance(a, float) == isinstance(b, float) and equal_literal(a, b)


def _literal(value: Any) -> str:
    return str(value) if isinstance(value, Value) else repr(value)


def _sizes(dims: Any) -> str:
    return f"[{', '.join('...' if d is ... else str(d) for d in dims)}]"
