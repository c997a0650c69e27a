"""`Sketch`: a copy of a captured graph that a check edits, with the example value of every node kept right."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from fxfuse.checking.running import call
from fxfuse.rewriting.copying import copy_graph, module_of
from fxfuse.rewriting.examples import mode_of

META = "example_value"


class Sketch:
    """An editable copy of ``gm``. ``mapping`` leads from the nodes of ``gm`` to the copy's."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.graph, self.mapping = copy_graph(gm)
        self._mode = mode_of(n.meta.get(META) for n in self.graph.nodes if n.op == "placeholder")

    def module(self) -> fx.GraphModule:
        """The edited graph, without what nobody reads any more; its example values may be stale until `refresh`."""
        for node in reversed(list(self.graph.nodes)):
            if not node.users and node.op.startswith("call_") and node.meta.get("fxfuse_check") != "effect":
                self.graph.erase_node(node)
        self.graph.lint()
        return module_of(self.gm, self.graph)

    def refresh(self) -> None:
        """Compute every example value anew."""
        with self._mode, torch.no_grad():
            for node in self.graph.nodes:
                if node.op.startswith("call_"):
                    node.meta[META] = call(node, _example)

    def method(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        """A method call at the graph's insertion point."""
        return self._made(self.graph.call_method(name, args, kwargs))

    def function(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A function call at the graph's insertion point."""
        return self._made(self.graph.call_function(target, args, kwargs))

    def _made(self, node: fx.Node) -> fx.Node:
        with self._mode, torch.no_grad():
            node.meta[META] = call(node, _example)
        return node

    def before(self, node: fx.Node) -> Any:
        """A context: nodes are made in front of this one."""
        return self.graph.inserting_before(node)

    def after(self, node: fx.Node) -> Any:
        """A context: nodes are made behind this one; behind all placeholders, where it is one of them."""
        if node.op == "placeholder":
            node = next(reversed(self.graph.find_nodes(op="placeholder")))
        return self.graph.inserting_after(node)

    def keep(self, node: fx.Node) -> None:
        """Mark a node as run for its effect, which stays although nobody reads it."""
        node.meta["fxfuse_check"] = "effect"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """For edits that may make no program: fake tensors log each operation that refuses its operands."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _example(node: fx.Node) -> Any:
    return node.meta[META]


def evaluate(gm: fx.GraphModule, arguments: Sequence[Any]) -> tuple[Any, list[Any]]:
    """The result of a graph on copies of these arguments, and the arguments as it left them."""
    own = [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    with torch.no_grad():
        return gm.forward(*own), own  # called as a module, FX prints a traceback of what an edit breaks


def values_of(gm: fx.GraphModule, arguments: Sequence[Any]) -> Mapping[fx.Node, Any]:
    """What every node of a graph without writes computes."""
    values: dict[fx.Node, Any] = {}
    pending = iter(arguments)
    with torch.no_grad():
        for node in gm.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(pending)
            elif node.op.startswith("call_"):
                values[node] = call(node, values.__getitem__)
    return values
