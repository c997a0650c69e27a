"""Near misses: how far a pattern got around a place where it did not match.

From a seed down to what it is made of, then up through the readers to the pattern's outputs; over an operation that
stands in between, and below one that stands in another's place. At every fork it takes the side that fits best.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import fx

from fxfuse.authoring.terms import ChoiceTerm, ManyTerm, OpTerm, Term, TermGraph
from fxfuse.errors import listed
from fxfuse.match.comparing import SWAPPED, Comparison, Fit, Hole, first_op
from fxfuse.match.reasons import Attempt, Failure
from fxfuse.view import Value, View
from fxfuse.view.ops import SPECS
from fxfuse.view.view import operands_in

_REACH = 16
"""How many values are looked at beyond a difference: an unknown op may be spelled as a formula of many."""
_BETWEEN = 8
"""How many of them may stand in between."""
_READERS = 16
"""How many readers of one value are looked at: in every place alike, so that a graph of any size takes linear time."""
_WHOLE = 3
"""A part of a pattern counts as found again below a difference if it is whole, and of so many operations."""


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
        key = frozenset(variant.items())
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
        """At most how many operations :meth:`around` could find of any of ``terms``: a cheap look at ops, not operands.

        Where the way up ends at a view or at the graph's output, nothing of the pattern can lie beyond.
        """
        above = self._above(terms)
        if above is None:
            return self.operations({})
        key = (terms, id(value))
        known = self._reach_of.get(key)
        if known is None:
            readers = self._readers(value)
            ends = [self.within_reach(above[r.op], r) for r in readers if r.op in above]
            ends += [self.within_reach(terms, r) for r in readers if r.op == "cast"]
            if not ends and any(not _is_a_view(user) for user in self.view.users(value)[:1]):
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
        self, term: Term, at: Value, fit: Fit, target: Term, over: int, used: frozenset[int] = frozenset()
    ) -> Fit:
        """``fit`` extended through the readers of ``at``, which is ``term``, up to ``target``.

        Args:
            over: how many differences on the way may be passed.
            used: ids of values that stand elsewhere in the pattern already.
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
        best = max(range(len(steps)), key=lambda i: reached[i].rank)
        _, parent, reader, _ = steps[best]
        return self._climb(parent, reader, reached[best], target, over, used)

    def _steps(self, at: Value, ways: list[_Way], used: frozenset[int]) -> list[tuple[_Way, OpTerm, Value, Value]]:
        """Readers of a value that may be what the pattern has next, with what they read; those that lead on, if any.

        Of a norm's many readers most lead nowhere, and telling so is cheaper than comparing their operands.
        """
        steps = []
        for source in (at, *(r for r in self._readers(at) if r.op == "cast" and r.known)):
            for reader in self._readers(source):
                if reader.known and id(reader) not in used:
                    steps += [(w, w.parent, reader, source) for w in ways if w.parent and w.parent.op == reader.op]
        if len(steps) < 2:
            return steps
        leading = [step for step in steps if self._leads_on(step[1], step[2])]
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
            reads = [{id(g) for n in names for g in self._given(reader, order.get(n, n))} for order in orders]
            orders = [order for order, read in zip(orders, reads, strict=True) if id(source) in read] or orders[:1]
        return max((self.compare.operands(parent, reader, order, term) for order in orders), key=lambda f: f.rank)

    def _given(self, value: Value, name: str) -> tuple[Any, ...]:
        given = self.view.operand(value.args.get(name))
        return tuple(map(self.view.operand, given)) if isinstance(given, tuple) else (given,)

    def _past(
        self, term: Term, at: Value, fit: Fit, target: Term, over: int, ways: list[_Way], used: frozenset[int]
    ) -> Fit:
        """The climb where no reader is what the pattern has: over what stands in between, or in its place."""
        nearest = next((user for user in self.view.users(at) if id(user) not in used), None)
        stops = over == 0 or nearest is None or _is_a_view(nearest)
        beyond = self._beyond(at, used) if not stops else [nearest] if nearest is not None else []
        hole = self._missing(term, at, beyond, ways, bool(used))
        short = fit.add(Fit(holes=(hole,)))
        if stops:
            return short
        ends = [short]
        between = Hole("OP", hole.term, hole.operand, listed(_ops_of(ways)), beyond[0], between=True)
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

    def _missing(self, term: Term, at: Value, beyond: list[Value], ways: list[_Way], further: bool) -> Hole:
        """The hole where nothing reads ``at``, which is ``term``, as the pattern does."""
        first: Any = beyond[0] if beyond else None
        parents: list[OpTerm] = [way.parent for way in ways if way.parent is not None]
        choice = ways[0].choice if len(parents) > 1 else None
        operand = at if first is None else first
        if choice is not None and all(way.choice is choice for way in ways):
            return Hole("ALTERNATIVES", choice, operand, None, first or "no reader but the graph's output")
        wanted = listed(_ops_of(ways))
        if further:
            return Hole("OP", parents[0], operand, f"a further {wanted} to read {at}", first or "none")
        return Hole("OP", parents[0] if parents else term, operand, wanted, first or "no reader but the graph's output")

    def _readers(self, value: Value) -> list[Value]:
        return self.view.readers(value)[:_READERS]

    def _beyond(self, at: Value, used: frozenset[int]) -> list[Value]:
        """What is computed from a value, nearest first."""
        found: dict[int, Value] = {}
        pending = [at]
        for value in pending:
            for user in self.view.users(value)[:_READERS]:
                if id(user) not in found and id(user) not in used and len(found) < _REACH:
                    found[id(user)] = user
                    pending.append(user)
        return list(found.values())

    def _reach(self, root: Term, fit: Fit) -> Fit:
        """``fit`` extended to a further output, from what is found of it already."""
        under = self.form.under[root]
        held = {term: value for term, value in fit.places if isinstance(value, Value)}
        if any(term in held for term in _spellings(root)):
            return fit
        for term in reversed(self.form.order):
            if term in under and term in held and any(w.parent in under for w in self._ways_up(term)):
                used = frozenset(id(value) for value in held.values())
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

    # --- below a difference -----------------------------------------------------------------------------------------

    def deepen(self, fit: Fit) -> tuple[Fit, list[Failure]]:
        """``fit`` with what is found again below its differences, and who else reads that."""
        holes: list[Hole] = []
        outside: list[Failure] = []
        for hole in fit.holes:
            again = self._again(hole)
            if again is None:
                holes.append(hole)
                continue
            term, value, found, passed = again
            fit = fit.add(found)
            if term is hole.term:
                name = f"{term.name} ({first_op(term)})" if isinstance(term, ChoiceTerm) else first_op(term)
                hole = Hole("OP", term, hole.operand, name, hole.operand, between=True)
            holes.append(hole)
            outside += self._read_outside(term, value, {*passed, *_nodes(fit)})
        return fit._replace(holes=tuple(holes)), outside

    def _again(self, hole: Hole) -> tuple[Term, Value, Fit, list[fx.Node]] | None:
        """What the hole should be, or else a part of it, found whole below what stands there; and what lies between."""
        if hole.between or hole.code not in {"OP", "ALTERNATIVES"} or not isinstance(hole.operand, Value):
            return None
        below = self._underneath(hole.operand)
        for term in (hole.term, *hole.term.children()):
            for place, value in enumerate(below):
                if not isinstance(term, OpTerm | ChoiceTerm):
                    break
                fit = self.compare.fit(term, value)
                if not fit.holes and fit.matched >= _WHOLE:
                    return term, value, fit, [n for v in (hole.operand, *below[:place]) for n in v.nodes]
        return None

    def _underneath(self, at: Value) -> list[Value]:
        """What a value is computed from, nearest first."""
        found: dict[int, Value] = {}
        pending = [at] if at.leaf is None else []
        for value in pending:
            raw = value.args if value.known else {"": tuple(value.node.all_input_nodes)}
            for operand in map(self.view.operand, operands_in(raw)):
                if operand.leaf is None and id(operand) not in found and len(found) < _REACH:
                    found[id(operand)] = operand
                    pending.append(operand)
        return list(found.values())

    def _read_outside(self, term: Term, value: Value, inside: set[fx.Node]) -> Iterator[Failure]:
        pending = [value]
        for at in pending:
            for user in self.view.users(at)[:_READERS]:
                if _is_a_view(user):
                    pending.append(user)
                elif user.node not in inside and inside.isdisjoint(user.nodes):
                    op = next((t for t in _spellings(term) if isinstance(t, OpTerm)), term)
                    yield Failure("EXTERNAL_USE", value, None, op, value, user.node)
                    return

    # --- what else was tried ----------------------------------------------------------------------------------------

    def attempts(self, places: tuple[tuple[Term, Any], ...], taken: Mapping[str, str]) -> list[Attempt]:
        """Where a choice is, its alternatives that do not fit there, best first, without those that were taken."""
        self.compare.renew()
        best: dict[tuple[str, str], tuple[tuple[int, int, int], Attempt]] = {}
        for term, operand in places:
            if not isinstance(term, ChoiceTerm):
                continue
            for label, alternative in term.alternatives.items():
                tried = self.compare.fit(alternative, operand)
                key = (term.name, label)
                if taken.get(term.name) == label or not tried.holes or (key in best and best[key][0] >= tried.rank):
                    continue
                best[key] = tried.rank, Attempt(*key, tried.holes[0].failure(), tried.matched)
        return [attempt for _, attempt in sorted(best.values(), key=lambda pair: pair[0], reverse=True)]


def _is_a_view(value: Value) -> bool:
    """Whether it computes nothing, so that no operation of a pattern can be meant."""
    spec = SPECS.get(value.op)
    return spec is not None and spec.alias


def _nodes(fit: Fit) -> Iterator[fx.Node]:
    for _, value in fit.places:
        if isinstance(value, Value):
            yield from value.nodes


def _ops_of(ways: list[_Way]) -> list[str]:
    return list(dict.fromkeys(way.parent.op for way in ways if way.parent is not None))


def _spellings(term: Term) -> Iterator[Term]:
    """The term, and what may stand for it: a choice's alternatives, what a cast casts."""
    yield term
    if isinstance(term, ChoiceTerm):
        for alternative in term.alternatives.values():
            yield from _spellings(alternative)
    elif isinstance(term, OpTerm) and term.op == "cast":
        yield from _spellings(term.args["input"])
