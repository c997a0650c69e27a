"""What a node computes, as a value that can be compared: the same for two nodes that differ in their operands only.

Everything that an inner compiler could specialise on is part of it: the operation, each constant with its type, and
dtype, shape, strides and device of what it gives. What cannot be compared is equal to itself alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import fx

_BY_VALUE = (torch.dtype, torch.device, torch.layout, torch.memory_format, type(None), type(Ellipsis), str, bytes)
_BY_TYPE = (bool, int, float, complex)

Refer = Callable[[fx.Node], Hashable]


def structure(operand: Any, refer: Refer) -> Hashable:
    """The operands of a node, with each node in them as ``refer`` names it."""
    if isinstance(operand, fx.Node):
        return ("node", refer(operand))
    if isinstance(operand, _BY_TYPE) and type(operand) in _BY_TYPE:
        return (type(operand).__name__, repr(operand))  # 1, 1.0 and True are three, and so are 0.0 and -0.0
    if isinstance(operand, _BY_VALUE):
        return (type(operand).__name__, operand)
    if isinstance(operand, slice):
        return ("slice", *(structure(part, refer) for part in (operand.start, operand.stop, operand.step)))
    if isinstance(operand, tuple | list):
        return (type(operand).__name__, *(structure(item, refer) for item in operand))
    if isinstance(operand, Mapping):
        return ("dict", *((key, structure(value, refer)) for key, value in operand.items()))
    return ("object", id(operand))


def has_symbols(operand: Any) -> bool:
    """Whether a symbolic number stands among the operands as such, and not as a node."""
    if isinstance(operand, torch.SymInt | torch.SymFloat | torch.SymBool):
        return True
    if isinstance(operand, slice):
        return has_symbols((operand.start, operand.stop, operand.step))
    if isinstance(operand, tuple | list):
        return any(map(has_symbols, operand))
    if isinstance(operand, Mapping):
        return any(map(has_symbols, operand.values()))
    return False


def operation(node: fx.Node, refer: Refer) -> Hashable:
    """The operation of a node and its operands."""
    target: Hashable = node.target if isinstance(node.target, str) else ("object", id(node.target))
    if node.op == "get_attr":
        target = _attribute(node)
    return (node.op, target, structure(node.args, refer), structure(node.kwargs, refer))


def _attribute(node: fx.Node) -> Hashable:
    held = attribute(node)
    return body(held) if isinstance(held, fx.GraphModule) else ("object", id(held))


def attribute(node: fx.Node) -> Any:
    """What a ``get_attr`` node reads."""
    held: Any = node.graph.owning_module
    for name in str(node.target).split("."):
        held = getattr(held, name)
    return held


def body(gm: fx.GraphModule) -> Hashable:
    """The whole of a graph that a higher-order op runs."""
    numbers = {node: index for index, node in enumerate(gm.graph.nodes)}
    rows = []
    for node in gm.graph.nodes:
        what = ("placeholder",) if node.op == "placeholder" else operation(node, numbers.__getitem__)
        rows.append((what, facts(node.meta.get("example_value"))))
    policy = gm.meta.get("_checkpoint_context_fn")  # of selective activation checkpointing
    return ("body", id(policy) if policy is not None else None, *rows)


def facts(value: Any) -> Hashable:
    """What a compiler may specialise on, of the value of a node."""
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided:
            return ("tensor", type(value), str(value.layout), id(value))
        return ("tensor", *shape_of(value))
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return (type(value).__name__, str(value))
    if isinstance(value, tuple | list):
        return (type(value).__name__, *map(facts, value))
    return structure(value, lambda node: id(node))


def shape_of(value: torch.Tensor) -> tuple[Hashable, ...]:
    """Dtype, device, shape and strides; symbolic sizes by their expression."""
    sizes = tuple(s if type(s) is int else str(s) for s in value.shape)
    strides = tuple(s if type(s) is int else str(s) for s in value.stride())
    return (value.dtype, str(value.device), sizes, strides)
