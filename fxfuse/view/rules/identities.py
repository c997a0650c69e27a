"""Nodes that are their operand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fxfuse.safeguards import safeguard
from fxfuse.view.rules.conditions import is_number
from fxfuse.view.rules.registry import see_through
from fxfuse.view.values import Value, same_shape

if TYPE_CHECKING:
    from fxfuse.view.view import View

SAME_DTYPE = safeguard("same_dtype", "a cast that changes values taken for none")
SAME_SHAPE = safeguard("same_shape", "a reshape or an expansion that changes the shape taken for none")
INACTIVE_DROPOUT = safeguard("inactive_dropout", "a dropout that drops taken for none")
WHOLE_SLICE = safeguard("whole_slice", "a slice that leaves elements out taken for the whole tensor")
IDENTITY_ORDER = safeguard("identity_order", "a permutation that moves a dimension taken for none")
TIMES_ONE = safeguard("times_one", "a product with another number than one taken for none")


def _source(view: View, value: Value) -> Value | None:
    source = view.operand(value.args["input"])
    return source if isinstance(source, Value) else None


@see_through("cast")
def cast_to_own_dtype(view: View, value: Value) -> Value | None:
    source = _source(view, value)
    if source is None or source.dtype is None:
        return None
    return source if SAME_DTYPE(source.dtype == value.dtype) else None


@see_through("reshape", "expand", "flatten", "unflatten", "reshape_as", "expand_as", "squeeze")
def shape_unchanged(view: View, value: Value) -> Value | None:
    source = _source(view, value)
    if source is None or source.meta is None or value.meta is None:
        return None
    return source if SAME_SHAPE(same_shape(source.shape, value.shape)) else None


@see_through("reshape", "flatten", "unflatten", "squeeze", "reshape_as")
def shape_restored(view: View, value: Value) -> Value | None:
    """``x[:, :, None].reshape(x.shape)``: two reshapes that end where they began."""
    source = _source(view, value)
    while source is not None and source.op in _RESHAPES:
        source = _source(view, source)
        if source is not None and source.owner is None and same_shape(source.shape, value.shape):
            return source
    return None


_RESHAPES = {"reshape", "flatten", "unsqueeze", "squeeze", "split_last", "merge_last", "rows"}


@see_through("contiguous", "clone", "alias")
def copy_of_values(view: View, value: Value) -> Value | None:
    return _source(view, value)


@see_through("dropout")
def inactive_dropout(view: View, value: Value) -> Value | None:
    training = value.args.get("training", value.args.get("train", True))
    inactive = training is False or is_number(value.args.get("p", 0.5), 0)
    return _source(view, value) if INACTIVE_DROPOUT(inactive) else None


@see_through("getitem")
def whole_slice(view: View, value: Value) -> Value | None:
    """``x[:, 0:, :]`` of a tensor is that tensor."""
    index = value.args["index"]
    parts = index if isinstance(index, tuple) else (index,)
    source = _source(view, value)
    if source is None or source.meta is None or not parts:
        return None
    untouched = True
    for part in parts:
        if type(part) is slice:
            untouched &= part.start in (None, 0) and part.stop is None and part.step in (None, 1)
        elif part is not Ellipsis:
            return None
    return source if WHOLE_SLICE(untouched) else None


@see_through("permute")
def order_unchanged(view: View, value: Value) -> Value | None:
    source, dims = _source(view, value), value.args["dims"]
    if source is None or source.rank != len(dims) or not all(type(d) is int for d in dims):
        return None
    return source if IDENTITY_ORDER(all(d in (i, i - len(dims)) for i, d in enumerate(dims))) else None


@see_through("transpose")
def dimension_with_itself(view: View, value: Value) -> Value | None:
    source, a, b = _source(view, value), value.args["dim0"], value.args["dim1"]
    rank = source.rank if source is not None else None
    if rank is None or type(a) is not int or type(b) is not int:
        return None
    return source if IDENTITY_ORDER((a - b) % max(rank, 1) == 0) else None


@see_through("t")
def transpose_of_a_row(view: View, value: Value) -> Value | None:
    source = _source(view, value)
    return source if source is not None and source.rank is not None and source.rank < 2 else None


@see_through("mul", "div")
def times_one(view: View, value: Value) -> Value | None:
    """A floating-point tensor times or divided by the number one."""
    name = "other" if isinstance(value.args["input"], torch.fx.Node) else "input"
    number = value.args[name]
    if type(number) not in (int, float) or (name == "input" and value.op == "div"):
        return None
    if not TIMES_ONE(number == 1) or "rounding_mode" in value.args:
        return None
    source = view.operand(value.args["input" if name == "other" else "other"])
    if not isinstance(source, Value) or not isinstance(source.dtype, torch.dtype):
        return None
    return source if source.dtype.is_floating_point and source.dtype == value.dtype else None
