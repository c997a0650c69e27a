"""Where the new nodes go: behind the last operand, before whoever reads an output first.

With one output there always is such a place. With several, a reader of an early output may stand before the last
operand is defined; what depends on the outputs is then moved behind the new nodes, in order.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import fx

from fxfuse.rewriting.errors import RewriteError
from fxfuse.safeguards import safeguard
from fxfuse.view.effects import switches_mode, written_by

ACYCLIC = safeguard("acyclic", "a fused node would have to be computed before its own operands")
NOTHING_CROSSED = safeguard("nothing-crossed", "a read would be moved over a write, a mode switch or another effect")


@dataclass(frozen=True)
class Place:
    """New nodes go right before ``anchor``; ``moved`` then goes behind them, in this order."""

    anchor: fx.Node
    moved: tuple[fx.Node, ...] = ()

    def settle(self) -> None:
        """Move what has to move, once the new nodes are there."""
        at = self.anchor.prev
        for node in self.moved:
            at.append(node)
            at = node


def find_place(outputs: Sequence[fx.Node], operands: Sequence[fx.Node], owned: Collection[fx.Node]) -> Place:
    """The place for what computes ``outputs`` from ``operands``, in the graph as it is now.

    Args:
        owned: the site's own nodes, which go away.

    Raises:
        RewriteError: CYCLE where an operand depends on an output; REWRITE_ERROR where the readers of an output would
            have to be moved over something that has an effect.
    """
    readers = [user for output in outputs for user in output.users if user not in owned]
    first = min([*readers, max(outputs)])
    last = max(operands, default=None)
    if last is None or last < first:
        return Place(first)
    dependent = set(outputs)
    moved: list[fx.Node] = []
    stretch: list[fx.Node] = []
    node = first
    while True:
        if any(source in dependent for source in node.all_input_nodes):
            dependent.add(node)
            moved.append(node)
        if node not in owned:
            stretch.append(node)
        if node is last:
            break
        node = node.next
    for operand in operands:
        if not ACYCLIC(operand not in dependent):
            reader = next((n for n in moved if n in readers), operand)
            what = f"its operand {operand.name} depends on its own output, through {reader.name}"
            raise RewriteError(what, code="CYCLE")
    effect = next((n for n in stretch if has_effect(n)), None)
    if not NOTHING_CROSSED(effect is None):
        assert effect is not None
        what = f"{moved[0].name} reads an output before {last.name}, an operand, is there; moving it would cross"
        raise RewriteError(f"{what} {effect.name}, which has an effect")
    return Place(last.next, tuple(moved))


def has_effect(node: fx.Node) -> bool:
    """Whether anything but its result tells that a node ran: a write, a switch of modes, an assertion, random state."""
    if node.op not in {"call_function", "call_method", "call_module"}:
        return False
    if node.op == "call_module" or any(written_by(node)):
        return True
    return switches_mode(node) or node.is_impure()
