"""Near misses: how far a pattern got around a place where it did not match.

From a seed down to what it is made of, then up through the readers to the pattern's outputs; over an operation that
stands in between, and below one that stands in another's place. At every fork it takes the side that fits best.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from fxfuse.authoring.terms import ChoiceTerm, ManyTerm, OpTerm, Term, TermGraph
from fxfuse.errors import listed
from fxfuse.match.below import deepened
from fxfuse.match.comparing import MOST_READERS, Comparison, Fit, Hole, Places, Rank, is_a_view, spellings
from fxfuse.match.feasible import SWAPPED
from fxfuse.match.reasons import OF_GATES, Attempt, Failure
from fxfuse.view import Value, View

_REACH = 16
"""How many values are looked at beyond a difference: an unknown op may be spelled as a formula of many."""
_BETWEEN = 10
"""How many of them may stand in between."""
_FORKS = 3
"""How many readers that fit alike are followed."""


_NOTHING: Mapping[int, Value] = {}


class _Way(NamedTuple):
    """From a term through casts and choices (which are nothing in the graph) to the operation that reads it.

    ``parent`` is None where the way ends at an output, ``end``. ``choice`` is what ``parent`` is an alternative of.
    """

    parent: OpTerm | None
    labels: tuple[tuple[ChoiceTerm, str], ...]
    choice: ChoiceTerm | None
    end: Term

    def choosing(self, fit: Fit, at: Value) -> Fit:
        """The fit with the choices on the way."""
        if not self.labels:
            return fit
        choices = tuple((choice.name, label) for choice, label in self.labels)
        return fit.add(Fit(choices=choices, places=tuple((choice, at) for choice, _ in self.labels)))


class _Step(NamedTuple):
    """``reader``, taken for ``parent``, reads ``source``."""

    way: _Way
    parent: OpTerm
    reader: Value
    source: Value


_NO_VARIANT: frozenset[tuple[str, str]] = frozenset()


class Probe:
    """Scores places of one view for one form of a pattern."""

    def __init__(self, view: View, form: TermGraph) -> None:
        self.view = view
        self.form = form
        self.compare = Comparison(view, form)
        self._ways: dict[Term, list[_Way]] = {}
        self._sizes: dict[frozenset[tuple[str, str]], int] = {}
        self._sizes_below: dict[Term, int] = {}
        self._above_all: dict[frozenset[OpTerm], dict[str, frozenset[OpTerm]] | None] = {}
        self._reach_of: dict[tuple[frozenset[OpTerm], int], int] = {}

    def around(self, seed: OpTerm, value: Value, over: int) -> Fit:
        """The best fit that has ``seed`` at ``value``: climbed to the output, and from there to the other outputs.

        Args:
            over: how many differences on the way up may be passed.
        """
        self.compare.renew()
        roots = self.form.under
        target = self.form.primary
        if seed not in roots[target]:
            target = next(root for root, under in roots.items() if seed in under)
        fit = self._climb(seed, value, self.compare.fit(seed, value), target, over)
        for output in self.form.outputs:
            root = output.element if isinstance(output, ManyTerm) else output
            if root is not target:
                fit = self._reach(root, fit)
        return fit

    def operations(self, variant: Mapping[str, str]) -> int:
        """How many operations the pattern has with this variant (with the first label where it is open)."""
        key = frozenset(variant.items()) if variant else _NO_VARIANT
        known = self._sizes.get(key)
        if known is None:
            known = self._sizes[key] = sum(1 for _ in self._counted(variant, self.form.outputs))
        return known

    def _counted(self, variant: Mapping[str, str], roots: Iterable[Term]) -> Iterator[Term]:
        seen: set[Term] = set()
        pending = list(roots)
        while pending:
            term = pending.pop()
            if term in seen:
                continue
            seen.add(term)
            if isinstance(term, ChoiceTerm):
                pending.append(term.alternatives[variant.get(term.name, next(iter(term.alternatives)))])
                continue
            pending += term.children()
            if term in self.compare.bits:
                yield term

    def within_reach(self, terms: frozenset[OpTerm], value: Value) -> int:
        """At most how many operations are above and below any of ``terms``, where all that is missing is a seed.

        A cheap look at ops, not at operands, before :meth:`around` is worth its time. Where the way up ends elsewhere
        than in front of a seed, or at a view or the graph's output, nothing of the pattern lies beyond.
        """
        above = self._above(terms)
        if above is None:
            return self.operations({})
        key = (terms, id(value))
        known = self._reach_of.get(key)
        if known is None:
            ends = []
            for reader in self._readers(value):
                if reader.op in above:
                    ends.append(self.within_reach(above[reader.op], reader))
                if reader.op == "cast":
                    ends.append(self.within_reach(terms, reader))
            before_a_seed = not ends and any(not some.isdisjoint(self.form.seeds) for some in above.values())
            if before_a_seed and any(not is_a_view(user) for user in self.view.users(value)[:1]):
                ends = [self.operations({})]
            known = self._reach_of[key] = max(ends, default=0) or max(map(self._own_operations, terms))
        return known

    def _above(self, terms: frozenset[OpTerm]) -> dict[str, frozenset[OpTerm]] | None:
        """What reads any of these terms, by op; None where one of them is an output."""
        if terms not in self._above_all:
            ways = [way for term in terms for way in self._ways_up(term)]
            above: dict[str, set[OpTerm]] = {}
            for parent in (way.parent for way in ways if way.parent is not None):
                above.setdefault(parent.op, set()).add(parent)
            arrived = any(way.parent is None for way in ways)
            self._above_all[terms] = None if arrived else {op: frozenset(some) for op, some in above.items()}
        return self._above_all[terms]

    def _own_operations(self, term: Term) -> int:
        if term not in self._sizes_below:
            self._sizes_below[term] = sum(1 for _ in self._counted({}, [term]))
        return self._sizes_below[term]

    # --- upwards ----------------------------------------------------------------------------------------------------

    def _climb(
        self, term: Term, at: Value, fit: Fit, target: Term, over: int, used: Mapping[int, Value] = _NOTHING
    ) -> Fit:
        """``fit`` extended through the readers of ``at``, which is ``term``, up to ``target``.

        Args:
            over: how many differences on the way may be passed.
            used: values that stand elsewhere in the pattern already, by their id.
        """
        under = self.form.under[target]
        ways = [way for way in self._ways_up(term) if way.end is target or way.parent in under]
        for way in ways:
            if way.parent is None:
                return way.choosing(fit, at)
        steps = self._steps(at, ways, used)
        if not steps:
            return self._past(term, at, fit, target, over, ways, used)
        reached = [
            way.choosing(fit, at).add(self._reading(parent, r, term, source)) for way, parent, r, source in steps
        ]
        top = max(f.rank for f in reached)
        best = [i for i, f in enumerate(reached) if f.rank == top][: _FORKS if over else 1]
        ends = [self._climb(steps[i].parent, steps[i].reader, reached[i], target, over, used) for i in best]
        return max(ends, key=lambda f: f.rank)

    def _steps(self, at: Value, ways: list[_Way], used: Mapping[int, Value]) -> list[_Step]:
        """Readers of a value that may be what the pattern has next, with what they read; those that lead on, if any.

        Of a norm's many readers most lead nowhere, and telling so is cheaper than comparing their operands.
        """
        steps = []
        for source in (at, *(r for r in self._readers(at) if r.op == "cast" and r.known)):
            for reader in self._readers(source):
                if reader.known and id(reader) not in used:
                    steps += [_Step(w, w.parent, reader, source) for w in ways if w.parent and w.parent.op == reader.op]
        if len(steps) < 2:
            return steps
        leading = [step for step in steps if self._leads_on(step.parent, step.reader)]
        return leading or steps[:1]

    def _leads_on(self, term: OpTerm, value: Value) -> bool:
        ways = self._ways_up(term)
        wanted = {way.parent.op if way.parent is not None else "" for way in ways}
        return "" in wanted or any(r.op in wanted or r.op == "cast" for r in self._readers(value))

    def _reading(self, parent: OpTerm, reader: Value, term: Term, source: Value | None) -> Fit:
        """What an operation that reads ``term`` adds: itself and its other operands.

        Args:
            source: the value that is ``term``, where the reader has it as an operand.
        """
        names = self.compare.leading_to(parent, term)
        orders: list[dict[str, str]] = [{}, SWAPPED] if parent.commutative else [{}]
        if source is not None:
            reads = [[g for n in names for g in self._given(reader, order.get(n, n))] for order in orders]
            orders = [order for order, read in zip(orders, reads, strict=True) if any(g is source for g in read)]
            if not orders:
                bit, found = self.compare.bits[parent], next(iter(reads[0]), None)
                hole = Hole("BINDING", parent, reader, source, found)
                return Fit(bit, bit, (hole,), (), ((parent, reader),))
        return max((self.compare.operands(parent, reader, order, term) for order in orders), key=lambda f: f.rank)

    def _given(self, value: Value, name: str) -> tuple[Any, ...]:
        given = self.view.operand(value.args.get(name))
        return tuple(map(self.view.operand, given)) if isinstance(given, tuple) else (given,)

    def _past(
        self, term: Term, at: Value, fit: Fit, target: Term, over: int, ways: list[_Way], used: Mapping[int, Value]
    ) -> Fit:
        """The climb where no reader is what the pattern has: over what stands in between, or in its place."""
        nearest = next((user for user in self.view.users(at) if id(user) not in used), None)
        stops = over == 0 or nearest is None or is_a_view(nearest)
        beyond = self._beyond(at, used) if not stops else [nearest] if nearest is not None else []
        hole = self._missing(term, at, beyond, ways, {value.op for value in used.values()})
        if len({way.labels for way in ways}) == 1:
            fit = ways[0].choosing(fit, at)
        chosen = ((hole.term, hole.operand),) if isinstance(hole.term, ChoiceTerm) else ()
        short = fit.add(Fit(holes=(hole,), places=chosen))
        if stops:
            return short
        ends = [short]
        between = Hole("OP", hole.term, hole.operand, listed(_ops_of(ways)), beyond[0], between=True, upward=True)
        places: dict[int, Term] = {}
        for way in ways:
            assert way.parent is not None
            for reader in beyond[1:_BETWEEN]:
                if reader.op == way.parent.op and reader.known:
                    over_it = way.choosing(fit, at).add(Fit(holes=(between,)))
                    read = over_it.add(self._reading(way.parent, reader, term, None))
                    ends.append(self._climb(way.parent, reader, read, target, over - 1, used))
            stand_in = way.choice or way.parent
            places[id(stand_in)] = stand_in
        for place in places.values():
            above = {way.parent.op for way in self._ways_up(place) if way.parent is not None}
            likely = [value for value in beyond if any(reader.op in above for reader in self._readers(value))]
            ends += [self._climb(place, value, short, target, over - 1, used) for value in likely]
        return max(ends, key=lambda f: f.rank)

    def _missing(self, term: Term, at: Value, beyond: list[Value], ways: list[_Way], elsewhere: set[str]) -> Hole:
        """The hole where nothing reads ``at``, which is ``term``, as the pattern does."""
        first: Any = beyond[0] if beyond else None
        parents: list[OpTerm] = [way.parent for way in ways if way.parent is not None]
        choice = ways[0].choice if len(parents) > 1 else None
        operand = at if first is None else first
        found = first or "no reader but the graph's output"
        if choice is not None and all(way.choice is choice for way in ways):
            return Hole("ALTERNATIVES", choice, operand, None, found, upward=True)
        wanted = listed(_ops_of(ways))
        if elsewhere.issuperset(_ops_of(ways)):
            wanted, found = f"a further {wanted} to read {at}", first or "none"
        return Hole("OP", parents[0] if parents else term, operand, wanted, found, upward=True)

    def _readers(self, value: Value) -> list[Value]:
        return self.view.readers(value)[:MOST_READERS]

    def _beyond(self, at: Value, used: Mapping[int, Value]) -> list[Value]:
        """What is computed from a value, nearest first."""
        found: dict[int, Value] = {}
        pending = [at]
        for value in pending:
            for user in self.view.users(value)[:MOST_READERS]:
                if id(user) not in found and id(user) not in used and len(found) < _REACH:
                    found[id(user)] = user
                    pending.append(user)
        return list(found.values())

    def _reach(self, root: Term, fit: Fit) -> Fit:
        """``fit`` extended to a further output, from what is found of it already."""
        under = self.form.under[root]
        held = {term: value for term, value in fit.places if isinstance(value, Value)}
        if any(term in held for term in spellings(root)):
            return fit
        for term in reversed(self.form.order):
            if term in under and term in held and any(w.parent in under for w in self._ways_up(term)):
                used = {id(value): value for value in held.values()}
                return self._climb(term, held[term], fit, root, 0, used)
        return fit

    def _ways_up(self, term: Term) -> list[_Way]:
        known = self._ways.get(term)
        if known is None:
            known = self._ways[term] = list(self._find_ways(term, ()))
        return known

    def _find_ways(self, term: Term, labels: tuple[tuple[ChoiceTerm, str], ...]) -> Iterator[_Way]:
        if term in self.form.under:
            yield _Way(None, labels, None, term)
        for parent in self.form.parents.get(term, ()):
            if isinstance(parent, ChoiceTerm):
                label = next(k for k, t in parent.alternatives.items() if t is term)
                yield from self._find_ways(parent, (*labels, (parent, label)))
            elif isinstance(parent, OpTerm) and parent.op == "cast":
                yield from self._find_ways(parent, labels)
            elif isinstance(parent, OpTerm):
                above = self.form.parents.get(parent, ())
                choice = above[0] if len(above) == 1 and isinstance(above[0], ChoiceTerm) else None
                yield _Way(parent, labels, choice, parent)

    def deepen(self, fit: Fit) -> tuple[Fit, list[Failure]]:
        """``fit`` with what is found again below its differences, and who else reads that."""
        return deepened(self.compare, fit)

    # --- what else was tried ----------------------------------------------------------------------------------------

    def attempts(self, places: Places, taken: Mapping[str, str], reason: Failure) -> list[Attempt]:
        """Where a choice is, its alternatives that do not fit there, best first, without those that were taken."""
        self.compare.renew()
        best: dict[tuple[str, str], tuple[Rank, Attempt]] = {}
        for term, operand in places:
            if not isinstance(term, ChoiceTerm):
                continue
            fits = any(not self.compare.fit(t, operand).holes for t in term.alternatives.values())
            settled = fits and not (reason.code in OF_GATES and reason.term in set(spellings(term)))
            for label, alternative in term.alternatives.items():
                tried = self.compare.fit(alternative, operand)
                key = (term.name, label)
                if taken.get(term.name) == label or not tried.holes or (key in best and best[key][0] >= tried.rank):
                    continue
                best[key] = tried.rank, Attempt(*key, tried.holes[0].failure(), tried.matched, settled)
        return [attempt for _, attempt in sorted(best.values(), key=lambda pair: pair[0], reverse=True)]


def _ops_of(ways: list[_Way]) -> list[str]:
    return list(dict.fromkeys(way.parent.op for way in ways if way.parent is not None))
