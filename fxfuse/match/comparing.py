"""How much of a term a value is: a comparison that counts past differences, greedy and without binding anything.

The search stops at the first thing that differs. A reader wants to know what else fits, so here a difference is a hole
and the comparison goes on around it. That two places hold one value is for the search to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from fxfuse.authoring.captures import is_optional, is_param, is_scalar
from fxfuse.authoring.terms import CaptureTerm, ChoiceTerm, DtypeTerm, OpTerm, Term, TermGraph, terms_in
from fxfuse.match.feasible import SWAPPED, equal_literal, is_a_scalar, not_a_parameter
from fxfuse.match.reasons import STRUCTURE, Failure, in_words, one_of_words, words
from fxfuse.view import Value, View
from fxfuse.view.ops import SPECS

_BUDGET = 2_000
"""How many comparisons one place may cost; by far enough where anything fits."""

MOST_READERS = 16
"""How many readers of one value are looked at: in every place alike, so that a graph of any size takes linear time."""

_Item = TypeVar("_Item")


Rank = tuple[int, int, bool, int]

Places = tuple[tuple[Term, Any], ...]
"""Which value (or constant) is which term."""


class Hole(NamedTuple):
    """A difference, cheap to make since most are thrown away; the fields are those of :class:`Failure`.

    ``upward``: what reads a part of the pattern differs, not what a part of it is made of.
    """

    code: str
    term: Term
    operand: Any
    expected: Any = None
    found: Any = None
    between: bool = False
    upward: bool = False

    def failure(self) -> Failure:
        expected = self.expected
        if isinstance(self.term, ChoiceTerm) and expected is None:
            expected = one_of_words(self.term)
        return Failure(self.code, expected, self.found, self.term, self.operand, between=self.between)


class Fit(NamedTuple):
    """How much of a pattern is at a place.

    ``terms`` has a bit for each operation that was found, ``seen`` also for those that differ in a constant;
    ``choices`` has the alternatives taken, ``places`` which value is which term.
    """

    terms: int = 0
    seen: int = 0
    holes: tuple[Hole, ...] = ()
    choices: tuple[tuple[str, str], ...] = ()
    places: Places = ()

    def add(self, other: Fit) -> Fit:
        holes, choices, places = other.holes, other.choices, other.places
        if self.seen & other.seen:  # both hold what is read twice: once is enough, or it doubles with each such value
            holes, choices, places = _new(holes, self.holes), _new(choices, self.choices), _new(places, self.places)
        return Fit(
            self.terms | other.terms,
            self.seen | other.seen,
            self.holes + holes,
            self.choices + choices,
            self.places + places,
        )

    @property
    def matched(self) -> int:
        """How many operations of the pattern were found, each once however often it is read."""
        return self.terms.bit_count()

    @property
    def rank(self) -> Rank:
        """Greater for what is farther. Of two as far, that is farther where every operation is there."""
        whole = not any(hole.code in STRUCTURE for hole in self.holes)
        return self.seen.bit_count(), self.terms.bit_count(), whole, -len(self.holes)


def _new(items: tuple[_Item, ...], known: tuple[_Item, ...]) -> tuple[_Item, ...]:
    """The items that are not known; as a comparison is made once, the same one is the same object."""
    held = set(map(id, known))
    return tuple(item for item in items if id(item) not in held)


NOTHING = Fit()


class Comparison:
    """Compares terms of one form of a pattern with values of one view. What was compared once stays known."""

    def __init__(self, view: View, form: TermGraph) -> None:
        self.view = view
        self.form = form
        self.bits = {t: 1 << i for i, t in enumerate(form.order) if isinstance(t, OpTerm) and t.op != "cast"}
        self._known: dict[tuple[int, int], Fit] = {}  # the ids stay valid: the view keeps its values
        self._below: dict[Term, frozenset[Term]] = {}
        self._leading: dict[tuple[OpTerm, Term], tuple[str, ...]] = {}
        self._budget = _BUDGET

    def renew(self) -> None:
        """Allow another place its comparisons."""
        self._budget = _BUDGET

    def below(self, term: Term) -> frozenset[Term]:
        """The term and everything that it is made of."""
        known = self._below.get(term)
        if known is None:
            known = self._below[term] = self.form.below(term)
        return known

    def leading_to(self, parent: OpTerm, term: Term) -> tuple[str, ...]:
        """The operands of ``parent`` that are made of ``term``."""
        known = self._leading.get((parent, term))
        if known is None:
            names = (n for n, w in parent.args.items() if any(term in self.below(t) for t in terms_in(w)))
            known = self._leading[parent, term] = tuple(names)
        return known

    def fit(self, term: Term, operand: Any) -> Fit:
        """How much of ``term``, and of what it is made of, is at ``operand``."""
        if not isinstance(operand, Value):
            return self._fit(term, operand)
        key = (id(term), id(operand))
        known = self._known.get(key)
        if known is None:
            self._budget -= 1
            if self._budget < 0:
                return NOTHING
            known = self._known[key] = self._fit(term, operand)
        return known

    def _fit(self, term: Term, operand: Any) -> Fit:
        if isinstance(term, CaptureTerm):
            return _capture(term, operand)
        if isinstance(term, ChoiceTerm):
            return self._choice(term, operand)
        assert isinstance(term, OpTerm)
        if isinstance(operand, Value):
            if term.op == "cast":
                if operand.op != "cast" or not operand.known:
                    return self.fit(term.args["input"], operand)
                below = self.fit(term.args["input"], self.view.operand(operand.args["input"]))
                return below._replace(places=((term, operand), *below.places))
            if operand.known and operand.op == term.op:
                best = self.operands(term, operand, {})
                if term.commutative:
                    swapped = self.operands(term, operand, SWAPPED)
                    best = swapped if swapped.rank > best.rank else best
                return best
        return Fit(holes=(Hole("OP", term, operand, first_op(term), operand),))

    def _choice(self, term: ChoiceTerm, operand: Any) -> Fit:
        """The alternative that got farthest; where several did, each stopped by something else, the choice is the hole.

        So ALTERNATIVES says that none of them is more likely meant than another. Where one got farther, or all of the
        farthest stop at one place, that is what a reader wants to know first; what became of the others comes below.
        """
        fits = {label: self.fit(alternative, operand) for label, alternative in term.alternatives.items()}
        top = max(f.rank for f in fits.values())
        ties = {label: f for label, f in fits.items() if f.rank == top}
        label, best = next(iter(ties.items()))
        places = ((term, operand), *best.places)
        stops = {(id(f.holes[0].term), id(f.holes[0].operand)) for f in ties.values() if f.holes}
        if len(stops) > 1:
            hole = Hole("ALTERNATIVES", term, operand, None, operand)
            return Fit(best.terms, best.seen, (hole,), best.choices, places)
        return best._replace(choices=((term.name, label), *best.choices), places=places)

    def operands(self, term: OpTerm, value: Value, rename: dict[str, str], without: Term | None = None) -> Fit:
        """An op of the right kind with its operands, where a constant differs only seen.

        Args:
            rename: the graph's argument for the pattern's, where the operands are swapped.
            without: operands made of this term are left out.
        """
        bit = self.bits[term]
        total = Fit(bit, bit, (), (), ((term, value),))
        wrong: list[Hole] = []
        skipped = self.leading_to(term, without) if without is not None else ()
        for name, wanted in term.args.items():
            if name in skipped:
                continue
            given = self.view.operand(value.args.get(rename.get(name, name)))
            if given is None and isinstance(wanted, Term):
                if isinstance(wanted, CaptureTerm) and is_optional(wanted.capture):
                    continue
                if isinstance(wanted, CaptureTerm) and is_scalar(wanted.capture):
                    given = _default(term, name)
                if given is None:
                    wrong.append(Hole("ARITY", term, value, f"{term.op} with {name}", "none"))
                    continue
            pairs = [(wanted, given)]
            if isinstance(wanted, tuple) and isinstance(given, tuple) and len(wanted) == len(given):
                pairs = list(zip(wanted, map(self.view.operand, given), strict=True))
            for item, operand in pairs:
                if isinstance(item, Term):
                    total = total.add(self.fit(item, operand))
                elif not isinstance(item, DtypeTerm) and not equal_literal(item, operand):
                    found = given if given is not None else _default(term, name)
                    shown = words(found) if isinstance(found, Value) else repr(found)
                    expected = f"{term.op} {name}={in_words(wanted)}"
                    wrong.append(Hole("LITERAL", term, value, expected, f"{name}={shown}"))
                    break
        for name in value.args:
            if name not in term.args:
                given = self.view.operand(value.args[name])
                code = "ARITY" if isinstance(given, Value) else "LITERAL"
                wrong.append(Hole(code, term, value, f"{term.op} without {name}", f"{name}={words(given)}"))
        return total if not wrong else total._replace(terms=total.terms & ~bit, holes=(*wrong, *total.holes))


def _default(term: OpTerm, name: str) -> Any:
    return SPECS[term.op].defaults.get(name)


def _capture(term: CaptureTerm, operand: Any) -> Fit:
    capture: Any = term.capture
    if is_scalar(capture):
        if not is_a_scalar(operand, capture.type):
            found = operand if isinstance(operand, Value) else repr(operand)
            return Fit(holes=(Hole("LITERAL", term, operand, f"a {capture.type.__name__} for {term.name}", found),))
        return NOTHING
    if operand is None and is_optional(capture):
        return NOTHING
    if not isinstance(operand, Value) or operand.owner is not None:
        return Fit(holes=(Hole("OP", term, operand, f"a tensor for {term.name}", operand),))
    problem = not_a_parameter(operand) if is_param(capture) else None
    return NOTHING if problem is None else Fit(holes=(Hole("NOT_A_PARAM", term, operand, term.name, problem),))


def first_op(term: Term) -> str:
    """The op nearest a term's root, of its first alternative."""
    while isinstance(term, ChoiceTerm) or (isinstance(term, OpTerm) and term.op == "cast"):
        term = next(iter(term.alternatives.values())) if isinstance(term, ChoiceTerm) else term.args["input"]
    return term.op if isinstance(term, OpTerm) else str(term)


def is_a_view(value: Value) -> bool:
    """Whether it computes nothing, so that no operation of a pattern can be meant."""
    spec = SPECS.get(value.op)
    return spec is not None and spec.alias and value.op != "cast"


def spellings(term: Term) -> Iterator[Term]:
    """The term, and what may stand for it: a choice's alternatives, what a cast casts."""
    yield term
    if isinstance(term, ChoiceTerm):
        for alternative in term.alternatives.values():
            yield from spellings(alternative)
    elif isinstance(term, OpTerm) and term.op == "cast":
        yield from spellings(term.args["input"])
