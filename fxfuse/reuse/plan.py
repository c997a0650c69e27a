"""Which stretches of a graph are compiled once and called several times.

The graph's operations, in order, are a sequence; each item is an operation with its constants and the shape of what
it gives. Where the sequence repeats itself, borders are put, at the cheapest place of the period; a stretch that is
made of repeats (five windowed layers, then a full one) is divided further. Then every stretch gets an exact key, with
its wiring, and those with one key share one compiled graph. Borders between two that share nothing are taken away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from fxfuse.reuse.borders import costs
from fxfuse.reuse.differences import difference
from fxfuse.reuse.hazards import Ground, LeftWhole, survey
from fxfuse.reuse.labels import attribute, facts, operation
from fxfuse.reuse.repeats import Run, runs
from fxfuse.reuse.segments import Segment, key, reads_body, segment

LEAST_REGION = 16
"""Operations of a region, at least: a call costs some microseconds."""
LEAST_SAVED = 100
"""Operations that need not be compiled again, at least: each further graph costs the compiler a little."""
LEAST_SHARE = 0.2
"""The same as a share of the graph."""


@dataclass(frozen=True)
class Kind:
    """Stretches that one compiled graph serves: the first of them, what any of them must give, and how many.

    ``as_written``: why it is run operation by operation, and not compiled; empty where it is compiled.
    """

    first: Segment
    gives: tuple[int, ...]
    copies: int
    as_written: str = ""


@dataclass(frozen=True)
class Plan:
    """A graph as calls of its kinds, in order; with a reason where it is left whole (then there are no calls)."""

    ground: Ground | None
    calls: tuple[tuple[Segment, int], ...] = ()
    kinds: tuple[Kind, ...] = ()
    reason: str = ""
    as_asked: bool = False

    @property
    def divided(self) -> bool:
        return bool(self.calls)


def plan(gm: fx.GraphModule, examples: Sequence[Any] = ()) -> Plan:
    """How to divide a captured graph. It is only looked at."""
    try:
        return _plan(gm, examples)
    except LeftWhole as reason:
        return Plan(None, reason=str(reason))


def _plan(gm: fx.GraphModule, examples: Sequence[Any]) -> Plan:
    nodes = [n for n in gm.graph.nodes if n.op not in {"placeholder", "get_attr", "output"}]
    sizes = _sizes(nodes)
    if sum(sizes.values()) < LEAST_SAVED + LEAST_REGION:
        return Plan(None, reason=f"it has {sum(sizes.values())} operations, too few to save any", as_asked=True)
    items = _items(nodes)
    if not any(run.copies > 1 for run in _worthwhile(runs(items, 0, len(items), LEAST_REGION), sizes, nodes)):
        raise LeftWhole(difference(nodes, LEAST_REGION))
    ground = survey(gm, examples, ambient_grad=torch.is_grad_enabled())
    borders = sorted(set(_borders(items, sizes, ground)))
    if not borders and ground.forbidden:
        why, _ = Counter(ground.forbidden.values()).most_common(1)[0]
        raise LeftWhole(f"where it repeats itself no border may stand: {why}")
    segments = _merged(ground, [0, *borders, len(nodes)])
    return _judged(ground, segments, sum(sizes.values()), sizes)


def _items(nodes: Sequence[fx.Node]) -> list[int]:
    """Each operation as a number: equal for equal operations on operands of equal facts."""
    numbers: dict[Hashable, int] = {}

    def refer(node: fx.Node) -> Hashable:
        if reads_body(node):
            return operation(node, refer)
        return facts(node.meta.get("example_value"))

    return [numbers.setdefault((operation(n, refer), facts(n.meta.get("example_value"))), len(numbers)) for n in nodes]


def _sizes(nodes: Sequence[fx.Node]) -> dict[fx.Node, int]:
    """How many operations each node stands for, those of the graphs that it runs among them."""
    return {node: 1 + sum(_within(n) for n in node.all_input_nodes if reads_body(n)) for node in nodes}


def _within(node: fx.Node) -> int:
    inner = [n for n in attribute(node).graph.nodes if n.op.startswith("call_")]
    return sum(_sizes(inner).values())


def _worthwhile(found: Sequence[Run], sizes: dict[fx.Node, int], nodes: Sequence[fx.Node]) -> list[Run]:
    """The runs that save enough, most first; of equal ones the shortest period, then the earliest."""
    total = [0]
    for node in nodes:
        total.append(total[-1] + sizes[node])

    def saved(run: Run) -> int:
        return total[run.start + run.copies * run.period] - total[run.start + run.period]

    worth = [
        run
        for run in found
        if total[run.start + run.period] - total[run.start] >= LEAST_REGION and saved(run) >= LEAST_SAVED // 2
    ]
    return sorted(worth, key=lambda run: (-saved(run), run.period, run.start))


def _borders(items: Sequence[int], sizes: dict[fx.Node, int], ground: Ground) -> list[int]:
    nodes = ground.nodes

    def within(start: int, end: int) -> list[int]:
        """Borders inside of a stretch, and those inside of each copy of its best run."""
        for run in _worthwhile(runs(items, start, end, LEAST_REGION), sizes, nodes):
            first = _first_border(run, ground)
            if first is None:
                continue
            inner = [0, *(place - first for place in within(first, first + run.period))]
            found = [
                place
                for copy in range(-1, run.copies + 1)
                for place in (first + copy * run.period + offset for offset in inner)
                if run.start <= place <= run.end and start < place < end and place not in ground.forbidden
            ]
            if found:
                return [*within(start, min(found)), *found, *within(max(found), end)]
        return []

    return within(0, len(nodes))


def _first_border(run: Run, ground: Ground) -> int | None:
    """The cheapest place of the period that all its copies allow; of equal ones that with most copies, the earliest."""
    price = costs(ground.nodes, ground.last_use, run.start)
    ranks = []
    for place in range(run.start, run.start + run.period):
        places = range(place, run.end + 1, run.period)
        if len(places) > 2 and ground.forbidden.keys().isdisjoint(places):
            inner = places[1:-1]  # what lies around the run is not the same for all places
            lost, crossing = (sum(of[p] for p in inner) / len(inner) for of in (price.lost, price.crossing))
            ranks.append((round(lost), -len(places), round(crossing), place))
    return min(ranks)[-1] if ranks else None


def _merged(ground: Ground, borders: Sequence[int]) -> list[tuple[Segment, Hashable]]:
    """The stretches between borders, without borders that lie between two that nothing is shared with."""
    cuts = sorted(set(borders))
    make = _maker(ground)
    while True:
        made = [make(a, b) for a, b in pairwise(cuts)]
        counts = Counter(k for _, k in made)
        needless = {
            cuts[i]
            for i in range(1, len(cuts) - 1)
            if counts[made[i - 1][1]] == 1 and counts[made[i][1]] == 1
        }  # fmt: skip
        if not needless:
            return made
        cuts = [c for c in cuts if c not in needless]


def _maker(ground: Ground) -> Callable[[int, int], tuple[Segment, Hashable]]:
    known: dict[tuple[int, int], tuple[Segment, Hashable]] = {}

    def make(start: int, end: int) -> tuple[Segment, Hashable]:
        if (start, end) not in known:
            made = segment(ground.nodes[start:end], ground.symbols, ground.same)
            known[start, end] = made, key(made, ground.grads, ground.same)
        return known[start, end]

    return make


def _judged(
    ground: Ground, made: Sequence[tuple[Segment, Hashable]], size: int, sizes: dict[fx.Node, int]
) -> Plan:  # fmt: skip
    order: dict[Hashable, int] = {}
    members: list[list[Segment]] = []
    for one, what in made:
        number = order.setdefault(what, len(order))
        if number == len(members):
            members.append([])
        members[number].append(one)
    kinds = []
    saved = 0
    for equal in members:
        gives = tuple(sorted({place for one in equal for place in one.gives}))
        kinds.append(Kind(equal[0], gives, len(equal)))
        saved += sum(sizes.get(n, 0) for n in equal[0].nodes) * (len(equal) - 1)
    if saved < LEAST_SAVED or saved < LEAST_SHARE * size:
        alike = f"equal stretches are {saved} of its {size} operations"
        raise LeftWhole(alike if saved else difference(ground.nodes, LEAST_REGION))
    return Plan(ground, tuple((one, order[what]) for one, what in made), tuple(kinds))
