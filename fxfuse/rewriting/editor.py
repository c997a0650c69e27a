"""`Editor`: replaces matches by a kernel's operations, in a copy of the graph that can then take the graph's place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from fxfuse.compat import constant_source
from fxfuse.kernels import Kernel
from fxfuse.match import Match
from fxfuse.params import Derived, Transform
from fxfuse.rewriting import aten, proxies
from fxfuse.rewriting.copying import copy_graph, module_of
from fxfuse.rewriting.dialect import Dialect, dialect_of
from fxfuse.rewriting.errors import RewriteError
from fxfuse.rewriting.examples import example_of, key_of, mode_of
from fxfuse.rewriting.fitting import lie_apart, require_fit
from fxfuse.rewriting.operands import Call, Inline
from fxfuse.rewriting.placing import find_place
from fxfuse.rewriting.sweeping import drop_assertions, sweep
from fxfuse.rewriting.transplant import transplant
from fxfuse.view import Value

_PROVENANCE = ("stack_trace", "nn_module_stack", "custom")


class Editor:
    """Edits a copy of the graph of ``gm``. ``mapping`` leads from the captured graph's nodes to the copy's.

    Args:
        dialect: what operations the graph is written in, where the caller knows.
        copied: a copy with its mapping, where only a part of the graph is wanted.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        dialect: Dialect | None = None,
        copied: tuple[fx.Graph, dict[fx.Node, fx.Node]] | None = None,
    ) -> None:
        self.gm = gm
        self.dialect = dialect or dialect_of(gm.graph)
        self.graph, self.mapping = copied or copy_graph(gm)
        self.derived: list[Derived] = []
        self._key = key_of(gm.graph)
        self._inputs: dict[tuple[Transform, tuple[int, ...], str], fx.Node] = {}
        self._originals = {copied: node for node, copied in self.mapping.items()}
        self._suspects: dict[fx.Node, None] = {}
        self._gone: set[fx.Node] = set()

    def replace(self, match: Match, kernel: Kernel, placement: str) -> tuple[fx.Node, ...]:
        """Put the kernel's operations in place of the match. Returns the new nodes; undoes itself where it fails.

        Raises:
            RewriteError: a result differs from the original in dtype, shape, device, strides or shared memory; the
                kernel returned something else than the site's results; or (code CYCLE) an operand depends on an output.
        """
        outputs = [self.mapping[value.node] for value in match.outputs]
        owned = {self.mapping[node] for node in match.owned}
        made: list[fx.Node] = []
        inputs_before = dict(self._inputs), list(self.derived)
        try:
            call = self._call(match, kernel, placement, made)
            place = find_place(outputs, call.nodes, owned)
            with self.graph.inserting_before(place.anchor):
                results = self._append(call, self.mapping[match.root.node], made)
            require_fit(results, outputs, call.nodes, made, kernel.name)
        except Exception:
            for node in reversed(made):
                self.graph.erase_node(node)
            self._inputs, self.derived = inputs_before
            raise
        place.settle()
        for value, output, result in zip(match.outputs, outputs, results, strict=True):
            for old in (output, *(self.mapping[twin] for twin in value.twins)):
                old.replace_all_uses_with(result)
        order = match.view.effects.order
        inside = sorted((*match.nodes, *match.seen_through), key=order.__getitem__)
        self._erase([self.mapping[node] for node in inside])
        for value, result in zip(match.outputs, results, strict=True):
            for node in (value.node, *value.twins):
                self.mapping[node] = result  # a later match may capture what this one made
        return tuple(made)

    def _append(self, call: Call, root: fx.Node, made: list[fx.Node]) -> list[fx.Node]:
        meta = {name: root.meta[name] for name in _PROVENANCE if name in root.meta}
        if self.dialect.is_aten:
            return aten.append_traced(self.graph, call, meta, self.dialect, made)
        return proxies.append_traced(self.graph, call, meta, self._key, made)

    def _erase(self, nodes: list[fx.Node]) -> None:
        for node in reversed(nodes):
            drop_assertions(node)
            self._suspects.update(dict.fromkeys([node, *node.all_input_nodes]))
            if not node.users:
                self.graph.erase_node(node)
                self._gone.add(node)

    # --- operands -----------------------------------------------------------------------------------------------------

    def _call(self, match: Match, kernel: Kernel, placement: str, made: list[fx.Node]) -> Call:
        operands: dict[str, Any] = dict.fromkeys(match.pattern.choices)
        operands.update({name: self._as_read(captured, match) for name, captured in match.captures.items()})
        operands.update(match.variant)
        for name, transform in kernel.derive:
            settled, sources = transform.settle(match.captures)
            if placement == "inline":
                operands[name] = Inline(settled, tuple(self._operand(s) for s in sources))
            else:
                operands[name] = self._derived(settled, sources, placement, made)
        taken = {name: operands[name] for name in kernel.parameters}
        return Call(kernel, taken, len(match.outputs), match.returns_a_tuple)

    def _as_read(self, captured: Any, match: Match) -> Any:
        """The node that a capture is, or the copy of it in another layout that the site reads in its place:
        ``x.transpose(1, 2).contiguous()`` is ``x.transpose(1, 2)`` to the view, and a kernel's result lies as its
        operand does."""
        if not isinstance(captured, Value):
            return self._operand(captured)
        others = [n for n in match.view.aliases(captured) if n is not captured.node]
        if others:
            read = {operand for node in match.nodes for operand in node.all_input_nodes}
            copies = [node for node in others if node in read and lie_apart(node, captured.node)]
            if len(copies) == 1 and captured.node not in read:
                return self.mapping[copies[0]]
        return self._operand(captured)

    def _operand(self, captured: Any) -> Any:
        if isinstance(captured, tuple):
            return tuple(map(self._operand, captured))
        return self.mapping[captured.node] if isinstance(captured, Value) else captured

    def _derived(self, transform: Transform, sources: list[Value], placement: str, made: list[fx.Node]) -> fx.Node:
        """The placeholder of a derived operand, one for each (transform, sources)."""
        positions = []
        for source in sources:
            if source.leaf is None or source.leaf.position is None:
                raise RewriteError(f"{source.node.name} is not an input of this graph")
            positions.append(source.leaf.position)
        key = (transform, tuple(positions), placement)
        if key in self._inputs:
            return self._inputs[key]
        fakes = [example_of(s.node) for s in sources]
        with mode_of(fakes), torch.no_grad():
            example = transform(*(f.detach() for f in fakes))
        with self.graph.inserting_after(self.graph.find_nodes(op="placeholder")[-1]):
            name = re.sub(r"\W+", "_", "_".join(transform.sources))
            node = self.graph.placeholder(f"fxfuse_{name}_{len(self.derived)}")
        made.append(node)
        node.meta = {self._key: example, "tensor_dict": {"_dynamo_static_input_type": "unguarded"}}
        node._dynamo_source = constant_source(node.name)
        self._inputs[key] = node
        self.derived.append(Derived(transform, tuple(positions), placement))
        return node

    # --- the result ---------------------------------------------------------------------------------------------------

    def finish(self, bodies: Mapping[str, fx.GraphModule]) -> fx.GraphModule:
        """The rewritten module. ``bodies`` replace the graphs of higher-order ops, by attribute name."""
        sweep(self._suspects, self._gone)
        for node in self._gone:  # a graph's namespace holds erased nodes, and their fake tensors with them
            node.meta.clear()
        self.graph.lint()
        made = module_of(self.gm, self.graph)
        for name, body in bodies.items():
            setattr(made, name, body)
        return made

    def erased(self) -> list[fx.Node]:
        """The captured graph's nodes whose copies are gone."""
        return [self._originals[node] for node in self._gone if node in self._originals]

    def commit(self) -> None:
        """Make the captured graph what the copy is, in place. Call it once, when all editors of a rewrite finished."""
        transplant(self.gm.graph, self.graph, self._originals)
        self.gm.recompile()
