"""What several rules ask of a value before they equate two spellings."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from fxfuse.safeguards import safeguard
from fxfuse.view.leaves import LeafKind
from fxfuse.view.ops import READS_METADATA_ONLY
from fxfuse.view.values import Value

if TYPE_CHECKING:
    from fxfuse.view.view import View

ROUNDED_ONCE = safeguard(
    "rounded_once", "a formula that rounds between its steps, in bf16 or fp16, taken for one op that rounds at its end"
)
SAME_OPERAND = safeguard("same_operand", "a formula of two different tensors taken for an op of one of them")
CONSTANT = safeguard("constant", "a formula with another constant taken for the op whose constant it resembles")

_WIDE = (torch.float32, torch.float64)


def is_wide(view: View, value: Value) -> bool:
    """Whether a further rounding is one of fp32 or finer: lower precisions keep every one where it is written.

    A pattern may leave the dtype open; then the answer is an assumption, which the view remembers.
    """
    if value.dtype in _WIDE:
        return True
    if view.symbolic and not isinstance(value.dtype, torch.dtype):
        view.assumed_wide = True
        return True
    return ROUNDED_ONCE(False)


def is_number(operand: Any, number: float) -> bool:
    return isinstance(operand, int | float) and not isinstance(operand, bool) and operand == number


def is_constant(operand: Any, number: float, value: Value) -> bool:
    """Whether a literal is this irrational number, as exactly as the value's dtype can hold it."""
    if not isinstance(operand, int | float) or isinstance(operand, bool):
        return False
    if value.dtype is torch.float64:
        return CONSTANT(operand == number)
    return CONSTANT(math.isfinite(operand) and struct.pack("f", operand) == struct.pack("f", number))


def is_same(a: Any, b: Any) -> bool:
    """Whether two operands are one value."""
    return isinstance(a, Value) and SAME_OPERAND(a is b)


def is_parameter(value: Any) -> bool:
    return (
        isinstance(value, Value)
        and value.leaf is not None
        and value.leaf.kind in (LeafKind.PARAMETER, LeafKind.BUFFER, LeafKind.CONSTANT)
    )


def is_read_once(node: fx.Node) -> bool:
    """Whether one node reads what this one computes. Asking for a size is no reading."""
    return len(node.users) == 1 or sum(not _asks_for_a_size(user) for user in node.users) == 1


def _asks_for_a_size(user: fx.Node) -> bool:
    return user.op == "call_method" and str(user.target) in READS_METADATA_ONLY


def factors(view: View, value: Value) -> tuple[list[Any], list[Any]]:
    """The operands of a product of products, and the nodes of the products below the outermost one."""
    found: list[Any] = []
    nodes: list[Any] = []
    pending = [view.operand(value.args["other"]), view.operand(value.args["input"])]
    while pending:
        at = pending.pop()
        # What is read elsewhere too is a factor of its own: gelu's x may be a product.
        inner = isinstance(at, Value) and at.op == "mul" and at.owner is None and len(at.node.users) == 1
        if inner and len(found) + len(pending) < _MOST_FACTORS:
            nodes.extend(at.nodes)
            pending += [view.operand(at.args["other"]), view.operand(at.args["input"])]
        else:
            found.append(at)
    return found, nodes


_MOST_FACTORS = 6
