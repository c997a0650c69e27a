"""Selection: which of several overlapping matches are kept."""

from __future__ import annotations

from collections.abc import Sequence

from fxfuse.match.finding import Found
from fxfuse.match.reasons import Failure


def select(found: Sequence[Found]) -> list[Found]:
    """Mark the losers among overlapping matches with OVERLAP, naming the winner; the order is kept.

    A higher priority wins, then more operations, then the earlier place in the graph. Two sites overlap where they
    cover one node. Deterministic.
    """
    matches = [f for f in found if f.match is not None and f.reason is None]
    place = {id(f): i for i, f in enumerate(matches)}
    taken: dict[object, Found] = {}
    for site in sorted(matches, key=lambda f: (-f.pattern.priority, -len(f.nodes), place[id(f)])):
        winner = next((taken[n] for n in site.nodes if n in taken), None)
        if winner is None:
            taken.update(dict.fromkeys(site.nodes, site))
        else:
            assert winner.match is not None
            where = f"{winner.pattern.name} at {winner.match.root.node.name}"
            what = f"{where} took {len(winner.nodes)} nodes, some of them this site's"
            site.reason = Failure("OVERLAP", what, operand=site.seed)
    return list(found)
