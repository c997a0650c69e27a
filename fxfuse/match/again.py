"""`Again`: a match like one that was found before is confirmed in one pass, without a search.

Models repeat their layers, so most sites of a graph are equal in all that a search looks at: operations, the names of
their arguments, literals, dtypes, sizes of what is captured, which places hold one value, and who reads what. A match
that was found is kept as steps that lead from its seed to all of it and leave no choice. Where they lead to the same
again, and nothing that a search would try before is possible, a search would find just this match, so it is made at
once. Where anything differs, the search decides. The gates look at either.

Of a pattern whose matches may overlap every one is wanted, so there nothing that a search would try later may be
possible, either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from fxfuse.authoring.keys import Keys
from fxfuse.authoring.terms import CaptureTerm, ChoiceTerm, ManyTerm, OpTerm, Term
from fxfuse.match.feasible import SWAPPED, Feasible, is_a_scalar, not_a_parameter
from fxfuse.match.gates import gate
from fxfuse.match.matching import Match
from fxfuse.match.search import Search, dims_of
from fxfuse.view import Value, View
from fxfuse.view.values import same_shape

_SEED, _ARGUMENT, _ITEM, _READER, _SAME, _CONSTANT = range(6)


class Ambiguous(Exception):
    """Steps alone do not tell a match from others that a search might find."""


class Again:
    """The steps to one match, from a value on that is one of its seeds; siblings (``many``) are gathered at each place.

    Raises:
        Ambiguous: there is a choice on the way, so only a search can tell.
    """

    def __init__(self, match: Match, seed: Value, feasible: Feasible) -> None:
        self.view: View = match.view
        self._only = match.pattern.may_overlap_itself
        if match.form.choices_of_siblings:
            raise Ambiguous
        self._match = match
        self._feasible = feasible
        self._bound = match.bound
        self._slots: dict[Term, int] = {}
        self._steps: list[tuple[int, int, Any, Any]] = []  # how a value is found: way, from which slot, name, index
        self._edges: list[tuple[int, str, int | None, int]] = []  # arguments that are found already: their slots
        self._impossible: list[tuple[Term, int]] = []  # what a search would try, too
        self._unread: list[tuple[OpTerm, int, int | None]] = []  # other readers that a search would climb to
        self._one_way: list[tuple[OpTerm, int, int]] = []  # commutative operations, and which order must be impossible
        self._record(seed)
        values = [self._bound[term] for term in self._slots]
        self._looks = [_look(term, value) for term, value in zip(self._slots, values, strict=True)]
        shared = {dim for term in self._bound if isinstance(term, CaptureTerm) for dim in dims_of(term)}
        self._sizes = {dim: size for dim, size in match.sizes.items() if dim in shared}
        first: dict[int, int] = {}
        places = [(i, first.setdefault(id(value), i)) for i, value in enumerate(values) if type(value) is Value]
        self._twins = [(place, other) for place, other in places if place != other]
        self._different = len(first)

    def at(self, seed: Value) -> Match | None:
        """The match around this value, before any gate; None where it is not like the one that was found."""
        values = self._follow(seed)
        if values is None or not self._is_first_choice(values):
            return None
        old = self._match
        bound = dict(zip(self._slots, values, strict=True))
        if not old.siblings:
            return Match(self.view, old.pattern, old.form, bound, old.variant, self._sizes)
        search = Search(self.view, old.pattern, old.form, self._feasible, gate)
        return search.settle(bound, old.variant, self._sizes)

    # --- the steps ---------------------------------------------------------------------------------------------------

    def _record(self, seed: Value) -> None:
        form = self._match.form
        seeds = [t for t in form.seeds if t.op == seed.op]
        start = next((t for t in seeds if self._bound.get(t) is seed), None)
        if start is None:
            raise Ambiguous
        self._reach(start, _SEED, 0)
        self._impossible += [(other, 0) for other in self._rivals(seeds, start)]
        done = 0
        while True:
            terms = list(self._slots)
            for at in range(done, len(terms)):
                self._below(terms[at], at)
            done = len(terms)
            if done == len(self._slots):
                if done == len(self._bound):
                    break
                self._above()
        gathered = {t for output in form.outputs if isinstance(output, ManyTerm) for t in output.own}
        for climbed in self._climbed(terms):
            self._above_otherwise(climbed, self._slots[climbed], terms, gathered)
        values = [self._bound[term] for term in terms]
        if any(self._is_read_by(*unread, values) for unread in self._unread):
            raise Ambiguous
        for other, at in self._impossible:
            if self._feasible(other, self._bound[terms[at]]):
                raise Ambiguous
        for operation, _, way in self._one_way:
            if self._feasible.orders(operation, self._bound[operation])[way]:
                raise Ambiguous

    def _rivals(self, terms: Sequence[Term], chosen: Term) -> list[Term]:
        """Those that a search tries before the chosen one, and after it where it looks for every match.

        One after it that differs from it in casts only holds the same values, and so is no other match.
        """
        at = terms.index(chosen)
        keys = Keys(casts=False)
        later = [t for t in terms[at + 1 :] if keys.of(t) != keys.of(chosen)] if self._only else []
        return [*terms[:at], *later]

    def _reach(self, term: Term, way: int, source: int, name: Any = None, index: int | None = None) -> None:
        self._slots[term] = len(self._slots)
        self._steps.append((way, source, name, index))

    def _below(self, term: Term, at: int) -> None:
        """What a term is made of: steps to what is new, edges to what was found."""
        bound = self._bound
        if type(term) is ChoiceTerm:
            child = term.alternatives[_label(term, self._match)]
            self._impossible += [(other, at) for other in self._rivals(list(term.alternatives.values()), child)]
            if child not in self._slots:
                self._reach(child, _SAME, at)
            elif bound[child] is not bound[term]:
                raise Ambiguous
        elif type(term) is OpTerm and _is_absent(term, bound):
            child = term.args["input"]
            if child not in self._slots:
                self._reach(child, _SAME, at)
        elif type(term) is OpTerm:
            if term.op == "cast" and self._only:
                self._impossible.append((term.args["input"], at))  # as if the cast were not the pattern's
            for name, index, child in self._arguments(term, at):
                if name not in bound[term].args:
                    if child not in self._slots:
                        self._reach(child, _CONSTANT, at, bound[child])
                    elif bound[child] is not None:
                        raise Ambiguous  # a default of the op, which must be what stands elsewhere
                elif child in self._slots:
                    self._edges.append((at, name, index, self._slots[child]))
                elif index is None:
                    self._reach(child, _ARGUMENT, at, name)
                else:
                    self._reach(child, _ITEM, at, name, index)

    def _arguments(self, term: OpTerm, at: int) -> Iterator[tuple[str, int | None, Term]]:
        """The terms among an operation's arguments, each with the graph's name of the argument."""
        value = self._bound[term]
        names = {name: name for name in term.args}
        if term.commutative:
            straight = self._stands(term, value, names)
            if not straight:
                names |= SWAPPED
                if not self._stands(term, value, names):
                    raise Ambiguous
            operands = value.args.get("input") is not value.args.get("other")
            if not straight or (self._only and operands and not self._is_symmetric(term)):
                self._one_way.append((term, at, int(straight)))
        for name, wanted in term.args.items():
            if isinstance(wanted, Term):
                yield names[name], None, wanted
            elif isinstance(wanted, tuple):
                yield from ((names[name], i, item) for i, item in enumerate(wanted) if isinstance(item, Term))

    def _is_symmetric(self, term: OpTerm) -> bool:
        return not self._match.pattern.constraints and self._feasible.symmetric(self._match.form, term)

    def _stands(self, term: OpTerm, value: Value, names: dict[str, str]) -> bool:
        """Whether the arguments of a commutative operation are what the match holds them to be, in this order."""
        for name, wanted in term.args.items():
            given = self.view.operand(value.args.get(names[name]))
            if isinstance(wanted, Term) and not _one(self._bound.get(wanted), given):
                return False
        return True

    def _above(self) -> None:
        """One step to an operation that reads what was found already."""
        bound, form = self._bound, self._match.form
        for term, at in self._slots.items():
            for parent in form.parents.get(term, ()):
                if parent in self._slots or parent not in bound:
                    continue
                if type(parent) is ChoiceTerm:
                    if bound[parent] is bound[term] and parent.alternatives[_label(parent, self._match)] is term:
                        return self._reach(parent, _SAME, at)
                elif type(parent) is OpTerm and _is_absent(parent, bound):
                    return self._reach(parent, _SAME, at)
                elif type(parent) is OpTerm and type(bound[term]) is Value:
                    if parent.op == "cast" and bound[term].dtype == bound[parent].dtype:
                        raise Ambiguous  # the cast might be taken for absent
                    if self._reader(bound[term], parent.op) is bound[parent]:
                        return self._reach(parent, _READER, at, parent.op)
        raise Ambiguous

    def _climbed(self, terms: Sequence[Term]) -> list[Term]:
        """What a search climbs from: the seed, where an operation above is found by its operand, and what is above."""
        climbed = [terms[0], *(terms[source] for way, source, _, _ in self._steps if way == _READER)]
        for term in climbed:
            parents = (p for p in self._match.form.parents.get(term, ()) if p in self._slots and p not in climbed)
            climbed += parents
        return list(dict.fromkeys(climbed))

    def _above_otherwise(self, term: Term, at: int, terms: Sequence[Term], gathered: Collection[Term]) -> None:
        """What a search could climb to from a term beside what is bound: nothing there may read the value at ``at``."""
        form, keys = self._match.form, Keys(casts=False)
        for parent in form.parents.get(term, ()):
            taken = parent in self._bound and self._is_child(parent, term)
            if taken or isinstance(parent, ManyTerm) or parent in gathered:
                continue
            if type(parent) is OpTerm:
                same = (i for i, t in enumerate(terms) if type(t) is OpTerm and keys.of(t) == keys.of(parent))
                self._unread.append((parent, at, next(same, None)))
            if type(parent) is ChoiceTerm or (type(parent) is OpTerm and parent.op == "cast"):
                if parent in form.under:
                    raise Ambiguous
                self._above_otherwise(parent, at, terms, gathered)

    def _is_child(self, parent: Term, term: Term) -> bool:
        if type(parent) is not ChoiceTerm:
            return True
        return self._bound[parent] is self._bound.get(term) and parent.alternatives[_label(parent, self._match)] is term

    def _is_read_by(self, term: OpTerm, at: int, known: int | None, values: Sequence[Any]) -> bool:
        """Whether a reader of a value could be this term, and is not bound already (to one that differs in casts)."""
        value = values[at]
        if type(value) is not Value:
            return False
        expected = values[known] if known is not None else None
        readers = (r for r in self.view.users(value) if r.op == term.op and r.known and r is not expected)
        return any(self._feasible(term, reader) for reader in readers)

    def _reader(self, value: Value, op: str) -> Value | None:
        """The only reader of a value with this op."""
        found = [reader for reader in self.view.users(value) if reader.op == op and reader.known]
        return found[0] if len(found) == 1 else None

    # --- another place -----------------------------------------------------------------------------------------------

    def _follow(self, seed: Value) -> list[Any] | None:
        """What stands where the steps lead, in their order, where it looks like what stood there before."""
        operand = self.view.operand
        values: list[Any] = []
        for (way, source, name, index), look in zip(self._steps, self._looks, strict=True):
            if way == _ARGUMENT:
                value = operand(values[source].args[name])
            elif way == _SAME:
                value = values[source]
            elif way == _READER:
                value = self._reader(values[source], name)
            elif way == _ITEM:
                value = operand(values[source].args[name][index])
            elif way == _CONSTANT:
                value = name
            else:
                value = seed
            if look is not None and not look(value):
                return None
            values.append(value)
        if any(values[slot] is not values[first] for slot, first in self._twins):
            return None
        if len({id(value) for value in values if type(value) is Value}) != self._different:
            return None
        for source, name, index, slot in self._edges:
            given = values[source].args[name]
            if not _one(values[slot], operand(given if index is None else given[index])):
                return None
        return values

    def _is_first_choice(self, values: list[Any]) -> bool:
        feasible = self._feasible
        return (
            not any(feasible(term, values[at]) for term, at in self._impossible)
            and not any(feasible.orders(term, values[at])[way] for term, at, way in self._one_way)
            and not any(self._is_read_by(*unread, values) for unread in self._unread)
        )


# --- how a value looks ------------------------------------------------------------------------------------------------


def _look(term: Term, value: Any) -> Callable[[Any], bool] | None:
    """Whether a value looks like this one, so that the search would take it for the term, too. None: any does."""
    if type(term) is ChoiceTerm:
        return None
    if type(term) is CaptureTerm:
        return _captured_like(term.capture, value)
    assert type(term) is OpTerm
    return _operation_like(term, value) if value.op == term.op else _uncast_like(value.dtype)


def _captured_like(capture: Any, value: Any) -> Callable[[Any], bool] | None:
    if value is None:
        return _is_none
    if capture.scalar:
        return partial(is_a_scalar, kind=capture.type)
    dtype, shape, leaf = value.dtype, value.shape, value.leaf
    kind = leaf.kind if leaf is not None else None

    def same(other: Any) -> bool:
        return (
            type(other) is Value
            and other.owner is None
            and other.dtype is dtype
            and (other.leaf is None if kind is None else other.leaf is not None and other.leaf.kind is kind)
            and same_shape(other.shape, shape)
            and not (capture.param and not_a_parameter(other))
        )

    return same


def _operation_like(term: OpTerm, value: Value) -> Callable[[Any], bool]:
    op, dtype, names, virtual = value.op, value.dtype, tuple(value.args), value.owner is not None
    literals = []
    lengths = []  # of tuples of terms, whose items are steps of their own
    for name, wanted in term.args.items():
        given = value.args.get(name)
        if isinstance(wanted, Term) or name not in value.args:
            continue
        if isinstance(wanted, tuple) and any(isinstance(item, Term) for item in wanted):
            if not all(isinstance(item, Term) for item in wanted):
                raise Ambiguous
            lengths.append((name, len(wanted)))
        elif not _is_plain(given):
            raise Ambiguous
        else:
            literals.append((name, given))

    def same(other: Any) -> bool:
        if type(other) is not Value or other.op != op or not other.known or other.dtype is not dtype:
            return False
        args = other.args
        if tuple(args) != names or (other.owner is not None) is not virtual:
            return False
        for name, length in lengths:
            if type(args[name]) is not tuple or len(args[name]) != length:
                return False
        return not literals or all(_alike(args[name], literal) for name, literal in literals)

    return same


def _uncast_like(dtype: Any) -> Callable[[Any], bool]:
    """Where a cast of the pattern has nothing to do: no cast may stand there, since a search would take it first."""

    def same(other: Any) -> bool:
        return type(other) is Value and other.dtype is dtype and not (other.op == "cast" and other.known)

    return same


def _is_none(value: Any) -> bool:
    return value is None


def _is_plain(given: Any) -> bool:
    """Whether ``_alike`` can compare a literal with another."""
    if type(given) is tuple:
        return all(type(item) is int for item in given)
    return given is None or type(given) in (int, bool, str, torch.dtype, float)


def _alike(a: Any, b: Any) -> bool:
    if a is b:
        return True
    kind = type(a)
    if kind is not type(b) or a != b:
        return False
    if kind is tuple:
        return all(type(item) is int for item in a)
    return kind is not float or a != 0 or math.copysign(1, a) == math.copysign(1, b)


def _one(a: Any, b: Any) -> bool:
    """Whether two places hold one thing: a value is only itself."""
    return a is b if type(a) is Value or type(b) is Value else _alike(a, b)


def _is_absent(term: OpTerm, bound: Mapping[Term, Any]) -> bool:
    return term.op == "cast" and bound[term] is bound.get(term.args["input"])


def _label(term: ChoiceTerm, match: Match) -> str:
    chosen = match.variant.get(term.name)
    if chosen is None:
        fitting = [label for label, other in term.alternatives.items() if match.bound.get(other) is match.bound[term]]
        if len(fitting) != 1:
            raise Ambiguous
        (chosen,) = fitting
    return chosen
