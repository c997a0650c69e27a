"""An op that computes in fp32 and rounds once, written as that: a cast up, the op, a cast back.

Eager's kernels of these ops do exactly this for bf16 and fp16, and Inductor decomposes them so. A rounding more (in
the formula, or a cast that was left out) is another function, and is left alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from fxfuse.safeguards import safeguard
from fxfuse.view.aten.absorbing import Absorbed
from fxfuse.view.rules.registry import rule
from fxfuse.view.values import Value

if TYPE_CHECKING:
    from fxfuse.view.view import View

SAME_DTYPE_BACK = safeguard("same_dtype_back", "an op rounded to another dtype than its input's taken for that op")
WIDENED_TO_FP32 = safeguard("widened_to_fp32", "an op between casts of lower precision taken for one in fp32")

_LOW = (torch.bfloat16, torch.float16)


@rule("cast", "silu", reads="silu")
def silu_rounded_once(view: View, value: Value) -> Value | None:
    return between_casts(view, value, "silu")


@rule("cast", "gelu", reads="gelu")
def gelu_rounded_once(view: View, value: Value) -> Value | None:
    return between_casts(view, value, "gelu")


def between_casts(view: View, value: Value, op: str) -> Value | None:
    """``cast(op(cast(x, fp32)), x.dtype)`` is ``op(x)``, where x is of low precision."""
    if view.symbolic:
        return None
    absorbed = Absorbed(view)
    inner = absorbed.take(value.args["input"], op)
    wide = view.operand(inner.args["input"]) if inner is not None else None
    if inner is None or not isinstance(wide, Value) or wide.op != "cast" or wide.owner is not None:
        return None
    x = view.operand(wide.args["input"])
    if not isinstance(x, Value) or not WIDENED_TO_FP32(wide.dtype is torch.float32 and inner.dtype is torch.float32):
        return None
    if not SAME_DTYPE_BACK(x.dtype in _LOW and value.dtype is x.dtype):
        return None
    if only_read_by(wide, absorbed.nodes):
        absorbed.take(inner.args["input"], "cast")
    made = value.become(op, {**inner.args, "input": x}, f"{op} between casts", absorbed.nodes)
    made.steps = (*inner.steps, *made.steps)
    return made


def only_read_by(value: Value, nodes: tuple[fx.Node, ...]) -> bool:
    """Whether nothing but these nodes reads the value; then it goes with them."""
    return all(reader in nodes for node in value.nodes for reader in node.users)
