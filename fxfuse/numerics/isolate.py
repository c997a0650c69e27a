"""One site on its own: its operations as they were captured, and the kernel's that replace them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxfuse.kernels import Kernel
from fxfuse.match import Match
from fxfuse.numerics.exact import Exact
from fxfuse.rewriting import Editor

NEARBY = 8
"""How many further nodes may lie between what the site reads and its captures, and still be run with the site."""


class Isolated:
    """A match as three functions of the same inputs: as captured, in float64, and fused.

    The fused one is what ``editor`` makes of the site in the whole graph. Nothing is run and nothing is moved here: a
    weight that the compiled graph would share or copy is computed from its sources at each call.

    Attributes:
        inputs: the captured graph's nodes whose values the functions take, in order.
        outputs: the captured graph's nodes whose values they give.
        nodes: the captured graph's nodes that they run, in graph order.

    Raises:
        RewriteError: as :meth:`fxfuse.rewriting.Editor.replace`.
    """

    def __init__(self, editor: Editor, match: Match, kernel: Kernel, placement: str) -> None:
        self._gm = editor.gm
        self.outputs = tuple(value.node for value in match.outputs)
        self.nodes, self.inputs, same = _slice(match)
        self._original, _ = self._copy(same)
        own = Editor(editor.gm, editor.dialect, self._copy(same))
        own.replace(match, kernel, placement)
        own.graph.eliminate_dead_code()
        self._fused = own.graph
        place = {node: i for i, node in enumerate(self.inputs)}
        sources = {v.leaf.position: place[v.node] for v in match.captured_values() if v.leaf is not None}
        self._derived = [(one.transform, [sources[p] for p in one.positions]) for one in own.derived]

    def _copy(self, same: dict[fx.Node, fx.Node]) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
        graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        for node in self.inputs:
            mapping[node] = graph.placeholder(node.name)
            mapping[node].meta = {key: node.meta[key] for key in ("example_value", "val") if key in node.meta}
        mapping.update({twin: mapping[node] for twin, node in same.items()})
        for node in self.nodes:
            mapping[node] = graph.node_copy(node, mapping.__getitem__)
        graph.output(tuple(mapping[node] for node in self.outputs))
        return graph, mapping

    def original(self, values: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        """The site's results as eager PyTorch computes them."""
        return fx.Interpreter(self._gm, graph=self._original).run(*values)

    def modules(self) -> tuple[fx.GraphModule, fx.GraphModule]:
        """The site as captured and as fused, for whoever compiles them; the fused one takes :meth:`derive`'s, too."""
        return fx.GraphModule(self._gm, self._original), fx.GraphModule(self._gm, self._fused)

    def derive(self, values: Sequence[Any]) -> list[torch.Tensor]:
        """The derived weights that the fused module takes after the inputs."""
        return [transform(*(values[i] for i in places)) for transform, places in self._derived]

    def exact(self, values: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        """The site's results in float64.

        Raises:
            NotMeasured: an operation computes in another precision, whatever it is given.
        """
        return Exact(self._gm, self._original).run(*values)

    def fused(self, values: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        """The kernel's results."""
        return fx.Interpreter(self._gm, graph=self._fused).run(*values, *self.derive(values))


def _slice(match: Match) -> tuple[tuple[fx.Node, ...], tuple[fx.Node, ...], dict[fx.Node, fx.Node]]:
    """The nodes that compute the outputs from the captures, what they read, and the captures' twins.

    Beside the site's own nodes these are the ones that the view sees through, such as a cast to the same dtype.
    """
    covered = set(match.nodes)
    ends: dict[fx.Node, fx.Node] = {}
    for value in match.captured_values():
        ends.update({node: value.node for node in (value.node, *value.twins) if node not in covered})
    order = match.view.effects.order
    first = min(order[node] for node in covered)
    inside = set(covered)
    pending = [value.node for value in match.outputs] + list(match.nodes)
    seen: set[fx.Node] = set()
    behind: list[fx.Node] = []  # later than the site's first node, so perhaps fed by the site
    while pending:
        node = pending.pop()
        if node in seen or node in ends or node.op in {"placeholder", "get_attr"}:
            continue
        seen.add(node)
        if node in covered or order[node] > first:
            behind.append(node)
            pending += node.all_input_nodes
    for node in sorted(behind, key=order.__getitem__):
        if any(operand in inside for operand in node.all_input_nodes):
            inside.add(node)
    for node in sorted(inside, key=order.__getitem__, reverse=True):
        for operand in node.all_input_nodes:
            if operand not in inside:
                inside |= _between(operand, ends, inside)
    nodes = tuple(sorted(inside, key=order.__getitem__))
    read = {operand for node in nodes for operand in node.all_input_nodes if operand not in inside}
    inputs = {ends.get(node, node) for node in read} | set(ends.values())
    same = {twin: node for twin, node in ends.items() if twin not in inputs}
    return nodes, tuple(sorted(inputs, key=order.__getitem__)), same


def _between(node: fx.Node, ends: dict[fx.Node, fx.Node], inside: set[fx.Node]) -> set[fx.Node]:
    """The few nodes from the captures to this one; none where it comes from elsewhere and is an input of its own."""
    found: set[fx.Node] = set()
    pending = [node]
    while pending:
        at = pending.pop()
        if at in ends or at in inside or at in found:
            continue
        if not at.op.startswith("call_") or len(found) == NEARBY:
            return set()
        found.add(at)
        pending += at.all_input_nodes
    return found
