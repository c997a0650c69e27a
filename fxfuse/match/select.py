"""Selection: which of several overlapping matches are kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import fx

from fxfuse.match.finding import Found
from fxfuse.match.reasons import Failure

EXACT = 24
"""Up to this many matches in one tangle the best total is found exactly; a larger one is taken greedily."""


def select(found: Sequence[Found]) -> list[Found]:
    """Mark the losers among overlapping matches with OVERLAP, naming the winner; the order is kept.

    Two sites overlap where both would take away one node, or one of them what the other reads. Of each tangle of
    overlapping sites those are kept that cover the most nodes together, those of higher priority first; of equal
    totals, the one with the earliest sites. A match whose nodes winners of its own pattern cover altogether is another
    reading of the same place, and left out.
    """
    matches = [f for f in found if f.match is not None and f.reason is None]
    rivals = _rivals(matches)
    winners: set[int] = set()
    for tangle in _tangles(matches, rivals):
        for priority in sorted({matches[i].pattern.priority for i in tangle}, reverse=True):
            level = [i for i in tangle if matches[i].pattern.priority == priority and not rivals[i] & winners]
            winners.update(_best(level, matches, rivals))
    taken: dict[object, Found] = {n: matches[i] for i in sorted(winners) for n in _owned(matches[i])}
    dropped: set[int] = set()
    for i, site in enumerate(matches):
        if i in winners:
            continue
        if all(n in taken and taken[n].pattern is site.pattern for n in _owned(site)):
            dropped.add(id(site))
            continue
        winner = matches[min(rivals[i] & winners)]
        assert winner.match is not None
        where = f"{winner.pattern.name} at {winner.match.root.node.name}"
        whose = "this site's" if any(n in taken for n in _owned(site)) else "what this site reads"
        what = f"{where} took {len(winner.nodes)} nodes, some of them {whose}"
        site.reason = Failure("OVERLAP", what, operand=site.seed)
    return [f for f in found if id(f) not in dropped]


def _owned(site: Found) -> Iterable[object]:
    assert site.match is not None
    return [n for n in site.nodes if n in site.match.owned]


def _rivals(matches: Sequence[Found]) -> list[set[int]]:
    """For each match, those that would take away a node of its own, or one that it reads and they do not give."""
    owners: dict[object, list[int]] = {}
    for i, site in enumerate(matches):
        for node in _owned(site):
            owners.setdefault(node, []).append(i)
    rivals: list[set[int]] = [set() for _ in matches]
    for sharing in owners.values():
        for i in sharing:
            rivals[i].update(j for j in sharing if j != i)
    for i, site in enumerate(matches):
        for node in _read(site):
            for j in owners.get(node, ()):
                if j != i and not _gives(matches[j], node):
                    rivals[i].add(j)
                    rivals[j].add(i)
    return rivals


def _read(site: Found) -> Iterable[fx.Node]:
    assert site.match is not None
    return [value.node for value in site.match.captured_values()]


def _gives(site: Found, node: fx.Node) -> bool:
    assert site.match is not None
    return any(node in (value.node, *value.twins) for value in site.match.outputs)


def _tangles(matches: Sequence[Found], rivals: Sequence[set[int]]) -> list[list[int]]:
    """Matches that hang together by overlaps, each group in graph order; a lone match is a group of one."""
    groups: list[list[int]] = []
    seen: set[int] = set()
    for start in range(len(matches)):
        if start in seen:
            continue
        group = [start]
        seen.add(start)
        for i in group:
            fresh = rivals[i] - seen
            seen |= fresh
            group += fresh
        groups.append(sorted(group))
    return groups


def _best(level: Sequence[int], matches: Sequence[Found], rivals: Sequence[set[int]]) -> list[int]:
    """The matches without overlap that cover the most nodes together; of equal totals, the earliest."""
    if len(level) < 2:
        return list(level)
    if len(level) > EXACT:
        chosen: list[int] = []
        for i in sorted(level, key=lambda i: (-len(matches[i].nodes), i)):
            if not rivals[i].intersection(chosen):
                chosen.append(i)
        return chosen
    import networkx as nx  # 0.2 s, and most graphs have no overlaps

    graph = nx.Graph()  # an edge where two can both be taken: the best set is the heaviest clique
    for place, i in enumerate(level):
        weight = (len(matches[i].nodes) << len(level)) + (1 << (len(level) - 1 - place))
        graph.add_node(i, weight=weight)
    graph.add_edges_from((i, j) for i in level for j in level if i < j and j not in rivals[i])
    best, _ = nx.max_weight_clique(graph, weight="weight")
    return sorted(best)
