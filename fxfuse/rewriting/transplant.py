"""Making a graph equal to its edited copy, in place: nodes that stayed keep their identity, and so their holders."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import fx


def transplant(original: fx.Graph, edited: fx.Graph, originals: Mapping[fx.Node, fx.Node]) -> None:
    """Edit ``original`` until it is ``edited``. ``originals`` leads from a node of the copy to what it is a copy of."""
    here: dict[fx.Node, fx.Node] = {}
    at: fx.Node | None = None
    for node in edited.nodes:
        known = originals.get(node)
        if known is None:
            with original.inserting_before(at.next if at is not None else next(iter(original.nodes))):
                known = original.node_copy(node, here.__getitem__)
            known.meta = copy.copy(node.meta)
        else:
            if at is not None and at.next is not known:
                at.append(known)
            known.args = fx.map_arg(node.args, here.__getitem__)
            known.kwargs = fx.map_arg(node.kwargs, here.__getitem__)
        here[node] = at = known
    staying = set(here.values())
    for node in reversed(list(original.nodes)):
        if node not in staying:
            original.erase_node(node)
