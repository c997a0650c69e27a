"""Finding every site of one pattern in one graph: matches, refused matches and near misses."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import fx

from fxfuse.authoring import Pattern
from fxfuse.authoring.terms import ChoiceTerm, OpTerm, TermGraph
from fxfuse.match.again import Again, Ambiguous
from fxfuse.match.comparing import Fit, Places
from fxfuse.match.feasible import Feasible
from fxfuse.match.gates import gate
from fxfuse.match.matching import Match
from fxfuse.match.near import Probe
from fxfuse.match.reasons import OF_GATES, STRUCTURE, Attempt, Failure
from fxfuse.match.search import STEP_LIMIT, Search
from fxfuse.view import Value, View

NEAR = 1 / 3
"""A place is a near miss where this share of the pattern's operations was found, ..."""

FEW = 3
"""... and at least so many of them (or all): one or two are in every graph."""

NEARLY = 3 / 4
"""The share for a place that lacks what the search starts from, and differs in nothing else or lacks nothing else."""

KINDS = 4
"""How many kinds of sites of one pattern are kept, so that the next of a kind is no search."""

_MOST = 8
"""How many further reasons of one site are kept."""


@dataclass
class Found:
    """A place where a pattern matched (``reason`` is None) or nearly did."""

    pattern: Pattern
    seed: Value
    match: Match | None = None
    reason: Failure | None = None
    nodes: tuple[fx.Node, ...] = ()
    variant: dict[str, str] | None = None
    matched: int = 0
    total: int = 0

    @property
    def is_near(self) -> bool:
        """Whether this is a match, or a place that looks enough like one to be worth a line."""
        return self.match is not None or _near(self.matched, self.total)


class Place(NamedTuple):
    """A place that is no match, scored; what is said of it is made where somebody is told."""

    seed: Value
    probe: Probe
    search: Search | None
    fit: Fit
    matched: int
    total: int

    @property
    def rank(self) -> tuple[float, int, int]:
        return self.matched / self.total, self.matched, -len(self.fit.holes)


def find_sites(
    view: View, pattern: Pattern, *, limit: int = STEP_LIMIT, taken: Collection[fx.Node] = ()
) -> list[Found]:
    """All sites of ``pattern``, in graph order of their seeds. Matches with the same outputs are one site.

    Several matches may overlap; which of them are taken is for :func:`fxfuse.match.select` to say. Where the graph has
    neither a match nor a near miss, the places that are least far from one are given.

    Args:
        limit: of the search's steps at one seed.
        taken: nodes where somebody has a better match already, so that a near miss there is no news.
    """
    sites: list[Found] = []
    known: dict[frozenset[int], Match] = {}
    failed: dict[int, list[tuple[Probe, Search]]] = {}
    seeds: dict[int, Value] = {}
    probes = [Probe(view, form) for form in pattern.forms]
    for probe in probes:
        form = probe.form
        larger: dict[fx.Node, list[set[fx.Node]]] = {}  # of the forms before, which have more operations
        for match in known.values() if form is not pattern.forms[0] else ():
            nodes = set(match.nodes)
            for node in nodes:
                larger.setdefault(node, []).append(nodes)
        feasible = Feasible(view)
        kinds: list[Again] = []
        for seed in _seed_values(view, form.seeds):
            matches, search = _matches_at(view, pattern, form, feasible, seed, kinds, limit)
            for match in matches:
                key = frozenset(id(v) for v in match.outputs)
                around = larger.get(match.nodes[0], ())
                if key not in known and not any(nodes.issuperset(match.nodes) for nodes in around):
                    known[key] = match
                    size = probe.operations(match.variant)
                    sites.append(Found(pattern, seed, match, None, match.nodes, match.variant, size, size))
            if search is not None:
                seeds[id(seed)] = seed
                failed.setdefault(id(seed), []).append((probe, search))
    covered = {*taken, *(n for match in known.values() for n in match.nodes)}
    places = []
    for at, searches in failed.items():
        if seeds[at].node not in covered:
            scored = [_place(probe, seeds[at], search, probe.form.seeds) for probe, search in searches]
            places.append(max(scored, key=lambda p: p.rank))
    near = [_told(view, pattern, place) for place in _apart([p for p in places if _near(p.matched, p.total)])]
    near += _from_other_ops(view, pattern, probes[0], covered.union(*(place.nodes for place in near)))
    if not sites and not near and places:
        best = max(p.rank for p in places)
        near = [_told(view, pattern, place) for place in _apart([p for p in places if p.rank == best])]
    order = view.effects.order
    return sorted([*sites, *near], key=lambda s: order[s.seed.node])


def _matches_at(
    view: View,
    pattern: Pattern,
    form: TermGraph,
    feasible: Feasible,
    seed: Value,
    kinds: list[Again],
    limit: int,
) -> tuple[list[Match], Search | None]:
    """The matches around a seed, and the search that told, where one was needed; ``kinds`` are of the sites before."""
    for kind in kinds:
        match = kind.at(seed)
        if match is not None and gate(match) is None:
            return [match], None
    search = Search(view, pattern, form, feasible, gate, limit)
    found = search.run(seed, every=pattern.may_overlap_itself)
    if len(found) == 1 and len(kinds) < KINDS:
        with contextlib.suppress(Ambiguous):
            kinds.append(Again(found[0], seed, feasible))
    return found, search


def place_around(view: View, pattern: Pattern, values: Iterable[Value]) -> Found | None:
    """The place nearest to a match that contains one of these values, or None where none is any op of the pattern."""
    scored = []
    for form in pattern.forms:
        probe = Probe(view, form)
        terms = list(probe.compare.bits)
        ops = {t.op for t in terms}
        scored += [_place(probe, value, None, terms, over=0) for value in values if value.op in ops]
    return _told(view, pattern, max(scored, key=lambda p: p.rank)) if scored else None


def _near(matched: int, total: int) -> bool:
    return matched >= NEAR * total and (matched >= FEW or matched == total)


def _apart(places: Sequence[Place]) -> list[Place]:
    """The places without those that are part of a better one, or lack the same: a pattern may hold several seeds."""
    kept: list[Place] = []
    held: set[int] = set()
    lacking: set[tuple[int, int]] = set()
    for place in sorted(places, key=lambda p: p.rank, reverse=True):
        holes = {(id(hole.term), id(hole.operand)) for hole in place.fit.holes}
        if id(place.seed) in held or not lacking.isdisjoint(holes):
            continue
        kept.append(place)
        lacking |= holes
        held.update(id(value) for term, value in place.fit.places if isinstance(term, OpTerm))
        held.update(id(hole.operand) for hole in place.fit.holes)
    return kept


def _from_other_ops(view: View, pattern: Pattern, probe: Probe, covered: set[fx.Node]) -> list[Found]:
    """Places without any of the seeds, so no matches, that have nearly all else: seen from the pattern's rare ops."""
    form = probe.form
    terms = tuple(t for t in form.order if isinstance(t, OpTerm) and t.distinctive and t not in form.seeds)
    found: list[Found] = []
    for value in _seed_values(view, terms):
        if value.node in covered:
            continue
        reach = probe.within_reach(frozenset(t for t in terms if t.op == value.op), value)
        if reach < NEARLY * probe.operations({}):
            continue
        place = _place(probe, value, None, terms, over=1)
        missing = place.total - place.matched
        if place.matched >= NEARLY * place.total and (missing <= 1 or len(place.fit.holes) == 1):
            nodes = set(_nodes(place))
            if covered.isdisjoint(nodes):
                found.append(_told(view, pattern, place))
                covered |= nodes
    return found


def _seed_values(view: View, terms: tuple[OpTerm, ...]) -> list[Value]:
    found = {id(v): v for op in dict.fromkeys(t.op for t in terms) for v in view.find(op)}
    order = view.effects.order
    return sorted(found.values(), key=lambda v: order[v.node])


def _place(probe: Probe, seed: Value, search: Search | None, terms: Sequence[OpTerm], over: int = 2) -> Place:
    fit = max((probe.around(t, seed, over) for t in terms if t.op == seed.op), key=lambda f: f.rank)
    matched = max(fit.matched, search.progress if search is not None else 0)
    return Place(seed, probe, search, fit, matched, max(probe.operations(_choices(fit)), matched))


def _nodes(place: Place) -> Iterator[fx.Node]:
    yield from place.seed.nodes
    for term, value in place.fit.places:
        if isinstance(term, OpTerm):
            yield from value.nodes


def _choices(fit: Fit) -> dict[str, str]:
    return dict(reversed(fit.choices))


def _told(view: View, pattern: Pattern, place: Place) -> Found:
    """The place with its reasons."""
    probe = place.probe
    fit, outside = probe.deepen(place.fit)
    failures = _of_search(place.search)
    first, *rest = _reasons(place, fit, outside, failures)
    choices = {**_choices(fit), **dict(first.variant)}
    asked = fit.places
    if isinstance(first.term, ChoiceTerm) and first.code == "ALTERNATIVES":
        choices.pop(first.term.name, None)
        others = ((t, v) for t, v in asked if not (isinstance(t, ChoiceTerm) and t.name == first.term.name))
        asked = ((first.term, first.operand), *others)
    matched = max(fit.matched, place.matched)
    reason = replace(
        first, progress=matched, also=tuple(rest[:_MOST]), tried=_tried(probe, asked, choices, first, failures)
    )
    order = view.effects.order
    nodes = tuple(sorted(set(_nodes(place._replace(fit=fit))), key=order.__getitem__))
    variant = {name: choices[name] for name in pattern.choices if name in choices}
    return Found(pattern, place.seed, None, reason, nodes, variant, matched, max(probe.operations(choices), matched))


def _reasons(place: Place, fit: Fit, outside: list[Failure], failures: list[Failure]) -> list[Failure]:
    """All reasons of a place, the one that a reader wants first.

    What the pattern has and the graph has not comes before anything that the search says, unless the search, which
    binds, got farther than the greedy comparison, which does not. Where nothing is missing, what stands in the way is
    what a gate refuses, or that two places do not hold what they must; only the search can tell.
    """
    holes = _once(hole.failure() for hole in fit.holes)
    others = [f for f in failures if f.code not in STRUCTURE]
    if failures and failures[0].code == "STEP_LIMIT":
        return failures[:1]
    if others and (not holes or others[0].progress > fit.seen.bit_count()):
        return [f for f in others if f.progress == others[0].progress]
    if holes or failures:
        return [*(holes or failures), *outside]
    seeds = " or ".join(dict.fromkeys(t.op for t in place.probe.form.seeds))
    return [Failure("OP", f"one of {seeds}", "none of them", operand=place.seed)]


def _of_search(search: Search | None) -> list[Failure]:
    """What stopped a search, the farthest first; of two as far, a gate says more than a wrong order of operands."""
    if search is None or [f.code for f in search.failures] == ["STEP_LIMIT"]:
        return search.failures if search is not None else []
    every = _once([*search.failures, *search.farthest.values()])
    return sorted(every, key=lambda f: (-f.progress, f.code not in OF_GATES, f.code in STRUCTURE))


def _once(failures: Iterable[Failure]) -> list[Failure]:
    found: dict[tuple[str, int, int], Failure] = {}
    for failure in failures:
        found.setdefault((failure.code, id(failure.term), id(failure.operand)), failure)
    return list(found.values())


def _tried(
    probe: Probe, places: Places, choices: dict[str, str], reason: Failure, failures: list[Failure]
) -> tuple[Attempt, ...]:
    """The alternatives that were not taken: what is missing of each, or what else the search met there."""
    missing = probe.attempts(places, choices, reason)
    known = {(a.choice, a.label) for a in missing}
    for failure in failures:
        for name, label in failure.variant:
            if (name, label) not in known and choices.get(name) not in (None, label):
                known.add((name, label))
                missing.append(Attempt(name, label, failure))
    return tuple(missing)
