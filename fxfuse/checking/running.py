"""Running a graph node by node, on real tensors, on fake ones, or in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx


def run(graph: fx.Graph, inputs: Mapping[str, Any]) -> Any:
    """The graph's result. ``inputs``: a value for each placeholder and attribute, by its target."""
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op in {"placeholder", "get_attr"}:
            values[node] = inputs[str(node.target)]
        elif node.op == "output":
            return fx.map_arg(node.args[0], values.__getitem__)
        else:
            values[node] = call(node, values.__getitem__)
    raise AssertionError("a graph ends with its output")


def call(node: fx.Node, value_of: Any) -> Any:
    """What a node computes of these operands."""
    args, kwargs = fx.map_arg(node.args, value_of), fx.map_arg(node.kwargs, value_of)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    target: Any = node.target
    return target(*args, **kwargs)


def tensors_in(result: Any) -> list[torch.Tensor]:
    """The tensors of a nested result, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, tuple | list):
        return [t for item in result for t in tensors_in(item)]
    return []


def same_bits(a: Any, b: Any) -> bool:
    """Whether two results are equal in structure, dtype, shape and every value (nan is nan)."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return bool(
            torch.equal(a, b) or (torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num()))
        )
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(same_bits, a, b))
    return bool(a == b)
