"""Finding every site of one pattern in one graph: matches, refused matches and near misses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from fxfuse.authoring import Pattern
from fxfuse.authoring.terms import ChoiceTerm, OpTerm, Term, TermGraph
from fxfuse.match.feasible import Feasible
from fxfuse.match.gates import gate
from fxfuse.match.matching import Match
from fxfuse.match.near import Probe
from fxfuse.match.reasons import Failure
from fxfuse.match.search import STEP_LIMIT, Search
from fxfuse.view import Value, View

NEAR = 1 / 3
"""A place counts as a near miss where this share of the pattern's operations was found."""


NEARLY = 3 / 4
"""The same for a place that lacks what the search starts from."""

_STRUCTURE = {"OP", "ARITY"}


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
        return self.match is not None or self.matched >= NEAR * self.total


def find_sites(view: View, pattern: Pattern, *, limit: int = STEP_LIMIT) -> list[Found]:
    """All sites of ``pattern``, in graph order of their seeds. Matches with the same outputs are one site.

    Several matches may overlap; which of them are taken is for :func:`fxfuse.match.select` to say.
    """
    sites: list[Found] = []
    known: dict[frozenset[int], Match] = {}
    failed: dict[int, list[tuple[TermGraph, Search]]] = {}
    seeds: dict[int, Value] = {}
    for form in pattern.forms:
        feasible = Feasible(view)
        for seed in _seed_values(view, form.seeds):
            search = Search(view, pattern, form, feasible, gate, limit)
            for match in search.run(seed, every=pattern.may_overlap_itself):
                key = frozenset(id(v) for v in match.outputs)
                if key not in known and not _within(match, known.values()):
                    known[key] = match
                    size = _operations(form, match.variant)
                    sites.append(Found(pattern, seed, match, None, match.nodes, match.variant, size, size))
            seeds[id(seed)] = seed
            failed.setdefault(id(seed), []).append((form, search))
    taken = {n for match in known.values() for n in match.nodes}
    for at, searches in failed.items():
        if seeds[at].node not in taken:
            places = [_near_miss(view, pattern, form, seeds[at], search, form.seeds) for form, search in searches]
            sites.append(max(places, key=lambda p: p.matched))
    order = view.effects.order
    return sorted([*sites, *_from_other_ops(view, pattern, sites)], key=lambda s: order[s.seed.node])


def _within(match: Match, others: Iterable[Match]) -> bool:
    """Whether a larger form of the pattern has matched all of this already."""
    nodes = set(match.nodes)
    return any(other.form is not match.form and nodes <= set(other.nodes) for other in others)


def _from_other_ops(view: View, pattern: Pattern, sites: list[Found]) -> list[Found]:
    """Places without any of the seeds, so no matches, that have nearly all else: seen from the pattern's rare ops."""
    form = pattern.forms[0]
    terms = tuple(t for t in form.order if isinstance(t, OpTerm) and t.distinctive and t not in form.seeds)
    covered = {n for s in sites if s.is_near for n in s.nodes}
    found: list[Found] = []
    for value in _seed_values(view, terms):
        if value.node in covered:
            continue
        place = _near_miss(view, pattern, form, value, None, terms)
        if place.matched >= NEARLY * place.total and covered.isdisjoint(place.nodes):
            found.append(place)
            covered.update(place.nodes)
    return found


def _seed_values(view: View, terms: tuple[OpTerm, ...]) -> list[Value]:
    found = {id(v): v for op in dict.fromkeys(t.op for t in terms) for v in view.find(op)}
    order = view.effects.order
    return sorted(found.values(), key=lambda v: order[v.node])


def _near_miss(
    view: View, pattern: Pattern, form: TermGraph, seed: Value, search: Search | None, terms: tuple[OpTerm, ...]
) -> Found:
    probe = Probe(view, form)
    fits = [probe.around(t, seed) for t in terms if t.op == seed.op]
    fit = max(fits, key=lambda f: f.rank)
    choices = dict(fit.choices)
    failures = search.failures if search is not None else []
    reached = search.progress if search is not None else 0
    if search is not None and not fit.holes and failures and failures[0].code in _STRUCTURE:
        # Every operation is there, so what stands in the way is what one of them reads.
        other = [f for f in search.farthest.values() if f.code not in _STRUCTURE]
        failures = [*sorted(other, key=lambda f: -f.progress), *failures]
    if failures and (reached >= fit.matched or not fit.holes or failures[0].code == "STEP_LIMIT"):
        first = failures[0]
        choices.update(first.variant)
        also = tuple(failures[1:])
        matched = max(first.progress, fit.matched)
    elif not fit.holes:
        what = f"one of {', '.join(dict.fromkeys(t.op for t in form.seeds))}"
        first, also, matched = Failure("OP", what, "none in the graph", operand=seed), (), fit.matched
    else:
        first, also, matched = fit.holes[0], (*fit.holes[1:], *failures[:1]), fit.matched
    reason = Failure(
        first.code, first.expected, first.found, first.term, first.operand, first.reader, matched, first.variant, also
    )
    order = view.effects.order
    nodes = tuple(sorted({n for v in (seed, *fit.values) for n in v.nodes}, key=order.__getitem__))
    total = max(_operations(form, choices), matched)
    return Found(pattern, seed, None, reason, nodes, choices, matched, total)


def _operations(form: TermGraph, variant: dict[str, str]) -> int:
    """How many operations of the pattern lie on the way that ``variant`` takes (the first label where it is open)."""
    seen: set[int] = set()

    def visit(term: Term) -> int:
        if id(term) in seen:
            return 0
        seen.add(id(term))
        if isinstance(term, ChoiceTerm):
            label = variant.get(term.name, next(iter(term.alternatives)))
            return visit(term.alternatives[label])
        below = sum(visit(child) for child in term.children())
        return below + (isinstance(term, OpTerm) and term.op != "cast")

    return sum(visit(output) for output in form.outputs)
