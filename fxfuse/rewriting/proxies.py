"""A kernel's operations in a torch-level graph: the function runs on proxies that append to it."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import GraphAppendingTracer

from fxfuse.rewriting.examples import example_of, flat, mode_of, tensor_of
from fxfuse.rewriting.operands import Call


def append_traced(graph: fx.Graph, call: Call, meta: Mapping[str, Any], key: str, made: list[fx.Node]) -> list[fx.Node]:
    """Append the operations of ``call`` at the graph's insertion point; returns the nodes of its results.

    Args:
        meta: what every new node is told about its origin.
        key: where the graph keeps example values.
        made: gets every new node, also where the call fails half-way.
    """
    tracer = _Tracer(graph, meta, key, made)
    results = call(tracer.proxy, fx.Proxy)
    return [proxy.node for proxy in results]


class _Operand(fx.Proxy):
    """A proxy that answers for dtype, device and static sizes with what is known, so a kernel may branch on them."""

    def __getattr__(self, name: str) -> Any:
        tensor = tensor_of(self.node)
        if tensor is not None:
            if name in {"dtype", "device", "ndim", "is_cuda"}:
                return getattr(tensor, name)
            if name == "shape" and all(isinstance(s, int) for s in tensor.shape):
                return tuple(tensor.shape)
        return super().__getattr__(name)

    def __iter__(self) -> Any:
        value = example_of(self.node)
        if isinstance(value, tuple | list):  # of an op with several results
            item: Any = operator.getitem
            return iter([item(self, i) for i in range(len(value))])
        return super().__iter__()

    def __len__(self) -> int:
        value = example_of(self.node)
        return len(value) if isinstance(value, tuple | list) else super().__len__()


class _Tracer(GraphAppendingTracer):
    """Appends operations, each with its example value and the site's source lines."""

    def __init__(self, graph: fx.Graph, meta: Mapping[str, Any], key: str, made: list[fx.Node]) -> None:
        super().__init__(graph)
        self.site_meta = dict(meta)
        self.key = key
        self.made = made

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Operand(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.made.append(node)
        node.meta.update(self.site_meta)
        self._propagate(node)
        return node

    def _propagate(self, node: fx.Node) -> None:
        operands = fx.map_arg((node.args, node.kwargs), lambda n: example_of(n))
        if any(example_of(n) is None for n in node.all_input_nodes):
            return
        args, kwargs = operands
        with mode_of(flat(operands)), torch.no_grad():
            if node.op == "call_function":
                target: Any = node.target  # of a call_function, a callable
                node.meta[self.key] = target(*args, **kwargs)
            elif node.op == "call_method":
                node.meta[self.key] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
