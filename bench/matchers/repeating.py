"""Long graphs: one captured layer after itself, as often as asked for. To capture 100,000 nodes would take minutes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from bench.matchers.captures import LEAVES


def repeated(gm: fx.GraphModule, times: int, stream: fx.Node) -> fx.GraphModule:
    """``gm`` after itself, ``times`` times: its first result feeds ``stream``; the other inputs are made anew.

    Metadata is copied with fresh tensors: values that share a tensor would look like aliases of each other.
    """
    graph = fx.Graph()
    holders = gm.graph.find_nodes(op="placeholder")
    body = [n for n in gm.graph.nodes if n.op not in {"placeholder", "output"}]
    first = gm.graph.output_node().all_input_nodes[0]
    others = [n for n in holders if n is not stream]
    storages: list[dict[int, Any]] = [{} for _ in range(times)]
    state = _copied(graph, stream, {}, {})
    maps = [{holder: _copied(graph, holder, {}, known) for holder in others} for known in storages]
    for copied, known in zip(maps, storages, strict=True):
        copied[stream] = state
        known[_storage(_value_of(stream))] = _value_of(state)  # a cast that changes nothing is its operand's storage
        for node in body:
            copied[node] = _copied(graph, node, copied, known)
        state = copied[first]
    graph.output((state,))
    made = fx.GraphModule(gm, graph)
    leaves = gm.meta.get(LEAVES)
    if leaves is not None:
        by_node = dict(zip(holders, leaves, strict=True))
        made.meta[LEAVES] = [by_node[stream], *(by_node[n] for _ in range(times) for n in others)]
    return made


def _copied(graph: fx.Graph, node: fx.Node, copied: dict[fx.Node, fx.Node], known: dict[int, Any]) -> fx.Node:
    made = graph.node_copy(node, copied.__getitem__)
    if node.op == "placeholder":
        made.target = made.name
        if hasattr(node, "_dynamo_source"):
            made._dynamo_source = node._dynamo_source
    for key in ("example_value", "val"):
        if key in node.meta:
            made.meta[key] = _fresh(node.meta[key], known)
    return made


def _fresh(value: Any, known: dict[int, Any]) -> Any:
    """A tensor like this one, in a storage of its own; views of one storage stay views of one."""
    if isinstance(value, tuple | list):
        return type(value)(_fresh(v, known) for v in value)
    if not isinstance(value, Tensor):
        return value
    key = _storage(value)
    with getattr(value, "fake_mode", contextlib.nullcontext()):
        base = known.get(key)
        if base is None:
            base = torch.empty(value.untyped_storage().nbytes() // value.itemsize, dtype=value.dtype)
            known[key] = base
        made = torch.as_strided(base, value.shape, value.stride(), value.storage_offset())
        return nn.Parameter(made, requires_grad=False) if isinstance(value, nn.Parameter) else made


def _value_of(node: fx.Node) -> Any:
    return node.meta.get("example_value", node.meta.get("val"))


def _storage(value: Tensor) -> int:
    return value.untyped_storage()._cdata


def repeated_onnx(model: Any, times: int) -> Any:
    """The same for an ``onnx_ir.Model``: its only output feeds its only input; initializers are made anew."""
    from onnxscript import ir

    (given,), (result,) = model.graph.inputs, model.graph.outputs
    first = _value(ir, given, given.name)
    state = first
    nodes: list[Any] = []
    initializers: list[Any] = []
    for turn in range(times):
        values: dict[Any, Any] = {given: state}
        for name, initializer in model.graph.initializers.items():
            made = _value(ir, initializer, f"{name}.{turn}")
            made.const_value = initializer.const_value
            values[initializer] = made
            initializers.append(made)
        for node in model.graph:
            copied = ir.Node(
                node.domain,
                node.op_type,
                [None if v is None else values[v] for v in node.inputs],
                list(node.attributes.values()),
                num_outputs=len(node.outputs),
                name=f"{node.name}.{turn}",
            )
            for old, new in zip(node.outputs, copied.outputs, strict=True):
                new.name, new.shape, new.type = f"{old.name}.{turn}", old.shape, old.type
                values[old] = new
            nodes.append(copied)
        state = values[result]
    graph = ir.Graph(
        [first], [state], nodes=nodes, initializers=initializers, opset_imports=dict(model.graph.opset_imports)
    )
    return ir.Model(graph, ir_version=model.ir_version)


def _value(ir: Any, like: Any, name: str) -> Any:
    return ir.Value(name=name, shape=like.shape, type=like.type)


def count(graph: Any) -> int:
    return len(graph.nodes) if isinstance(graph, fx.Graph) else sum(1 for _ in graph)


def holder_of(gm: fx.GraphModule, shape: Sequence[int]) -> fx.Node:
    """The placeholder of the only runtime input, known by its shape."""
    found = []
    for node in gm.graph.find_nodes(op="placeholder"):
        value = _value_of(node)
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and tuple(value.shape) == tuple(shape):
            found.append(node)
    (only,) = found
    return only
