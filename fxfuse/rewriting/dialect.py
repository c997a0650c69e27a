"""Which operations a graph is written in, and so in which ones a kernel's have to be."""

from __future__ import annotations

import operator
from enum import Enum
from typing import Any

import torch
from torch import fx


class Dialect(Enum):
    """A level of the stack that graphs come from."""

    TORCH = "torch"  # Dynamo's graphs, Inductor's before autograd: functions and methods as the model calls them
    EXPORT = "export"  # torch.export's: ATen before dispatch, composite ops (linear) whole
    CORE = "core"  # ExportedProgram.run_decompositions: composite ops decomposed, core ATen
    INDUCTOR = "inductor"  # after AOT autograd, inside Inductor: its own decompositions, prims among them

    @property
    def is_aten(self) -> bool:
        return self is not Dialect.TORCH


_BOOKKEEPING = {"reshape", "sym_size", "sym_stride", "sym_numel", "sym_storage_offset"}
"""Composite ops that Inductor itself writes into graphs which are otherwise decomposed."""


def dialect_of(graph: fx.Graph) -> Dialect:
    """The dialect of a graph, told from its calls; where the caller knows it, that is better.

    - a node with Dynamo's ``example_value``, a method call, or a call of anything but operator overloads,
      higher-order ops and arithmetic on sizes: ``TORCH``; so is a graph that calls nothing;
    - any of ``prims``: ``INDUCTOR``, whose decompositions alone write it;
    - a composite ATen op other than reshapes and sizes: ``EXPORT``;
    - else ``CORE``, in which Inductor's graphs without prims can be read and written, too.
    """
    calls = [n for n in graph.nodes if n.op in {"call_function", "call_method"}]
    overloads = [n.target for n in calls if isinstance(n.target, torch._ops.OpOverload)]
    if not overloads or not all(map(_is_aten_call, calls)):
        return Dialect.TORCH
    if any(target.namespace == "prims" for target in overloads):
        return Dialect.INDUCTOR
    return Dialect.EXPORT if any(map(_is_composite, overloads)) else Dialect.CORE


def _is_aten_call(node: fx.Node) -> bool:
    if node.op == "call_method" or "example_value" in node.meta:
        return False
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload | torch._ops.HigherOrderOperator) or target is operator.getitem:
        return True
    return not isinstance(node.meta.get("val"), torch.Tensor | tuple | list) and "val" in node.meta


def _is_composite(target: torch._ops.OpOverload) -> bool:
    if target.namespace != "aten" or target.overloadpacket.__name__ in _BOOKKEEPING:
        return False
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(target.has_kernel_for_dispatch_key(key))
