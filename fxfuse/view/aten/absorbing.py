"""Which nodes a rule takes into the op that it makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from fxfuse.view.values import Value

if TYPE_CHECKING:
    from fxfuse.view.view import View


class Absorbed:
    """The operands that a formula is made of, looked up one by one, and all nodes on the way to them."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._nodes: dict[fx.Node, None] = {}

    def take(self, raw: Any, op: str) -> Value | None:
        """The value of ``raw`` where it is this op and has nodes of its own; those become part of the formula."""
        value = self.view.operand(raw)
        if not isinstance(value, Value) or value.op != op or not value.known or value.owner is not None:
            return None
        own = dict.fromkeys(value.nodes)
        at = raw
        while isinstance(at, fx.Node) and at not in own and at.all_input_nodes:
            self._nodes[at] = None  # the view sees through it, so only the formula reads it
            at = at.all_input_nodes[0]
        self._nodes.update(own)
        return value

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        return tuple(self._nodes)
