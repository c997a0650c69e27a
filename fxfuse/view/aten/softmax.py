"""``softmax`` in one form: computed in fp32 where the scores are of low precision, and spelled out or not.

Eager's kernel widens to fp32, and rounds at its end; so a softmax of low precision is a cast up, a softmax and a cast
back. The pattern's and the graph's are written so alike, and ``softmax(x, dtype=torch.float32)`` is the same less one
cast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fxfuse.safeguards import safeguard
from fxfuse.view.aten.absorbing import Absorbed
from fxfuse.view.rules.conditions import is_number, is_wide
from fxfuse.view.rules.registry import rule
from fxfuse.view.values import DtypeOf, SymbolicMeta, Value

if TYPE_CHECKING:
    from fxfuse.view.view import View

SAME_REDUCTION = safeguard("same_reduction", "a maximum or a sum over another dimension taken for softmax's")

_LOW = (torch.bfloat16, torch.float16)
_ONLINE = "prepare_softmax_online"


@rule("div", "softmax", reads="exp")
def exponentials_over_their_sum(view: View, value: Value) -> Value | None:
    """``exp(x - max) / sum(exp(x - max))``; last place of fp32 may differ."""
    if "rounding_mode" in value.args or not is_wide(view, value):
        return None
    absorbed = Absorbed(view)
    powers = absorbed.take(value.args["input"], "exp")
    shifted = absorbed.take(powers.args["input"], "sub") if powers is not None else None
    if powers is None or shifted is None or "alpha" in shifted.args:
        return None
    x = view.operand(shifted.args["input"])
    if not isinstance(x, Value) or x.dtype is not value.dtype:
        return None
    largest, total = absorbed.take(shifted.args["other"], "amax"), absorbed.take(value.args["other"], "sum")
    if largest is not None and total is not None:
        whole = view.operand(largest.args["input"]) is x and view.operand(total.args["input"]) is powers
        dim, other = _dim(view, largest), _dim(view, total)
        if whole and SAME_REDUCTION(dim == other) and dim is not None:
            return value.become("softmax", {"input": x, "dim": dim}, "the formula of softmax", absorbed.nodes)
        return None
    return _online(view, value, x, shifted, absorbed)


def _dim(view: View, reduced: Value) -> int | None:
    dim = view.dimension(reduced)
    kept = reduced.args.get("keepdim", False)
    return dim if kept and isinstance(dim, int) and "dtype" not in reduced.args else None


def _online(view: View, value: Value, x: Value, shifted: Value, absorbed: Absorbed) -> Value | None:
    """Inductor's maximum and sum in one pass: ``prepare_softmax_online(x, dim)`` gives both."""
    largest, total = absorbed.take(shifted.args["other"], "getitem"), absorbed.take(value.args["other"], "getitem")
    if largest is None or total is None:
        return None
    both = view.operand(largest.args["input"])
    if not isinstance(both, Value) or view.operand(total.args["input"]) is not both or _ONLINE not in both.op:
        return None
    given: Any = both.node.args
    if not (is_number(largest.args["index"], 0) and is_number(total.args["index"], 1)) or x.shape is None:
        return None
    if len(given) != 2 or view.operand(given[0]) is not x or not isinstance(given[1], int):
        return None
    args = {"input": x, "dim": given[1] % len(x.shape) - len(x.shape)}
    return value.become("softmax", args, "the formula of softmax", (*absorbed.nodes, both.node))


@rule("softmax", "softmax")
def softmax_of_half(view: View, value: Value) -> Value | None:
    """ATen's flag for ``softmax(x, dtype=torch.float32)`` of an fp16 tensor."""
    args = {name: given for name, given in value.args.items() if name != "half_to_float"}
    if len(args) == len(value.args):
        return None
    return value.become("softmax", {**args, "dtype": torch.float32}, "_softmax with half_to_float")


@rule("softmax", "cast")
def softmax_rounded_once(view: View, value: Value) -> Value | None:
    """A softmax of low precision is computed in fp32 and rounded at its end."""
    x = view.operand(value.args["input"])
    if not isinstance(x, Value) or not {"input", "dim"} >= set(value.args):
        return None
    if x.dtype is torch.float32 or (x.op == "cast" and x.owner is not None):
        return None
    if not view.symbolic and x.dtype not in _LOW:
        return None
    wide = value.part("cast", {"input": x, "dtype": torch.float32}, SymbolicMeta(torch.float32, x.shape, x.device))
    inner = value.part("softmax", {**value.args, "input": wide}, SymbolicMeta(torch.float32, value.shape, value.device))
    back: Any = DtypeOf(x) if view.symbolic else x.dtype
    made = value.become("cast", {"input": inner, "dtype": back}, "softmax rounds once")
    wide.owner = inner.owner = made
    return made
