"""Slices as ATen has them, one dimension at a time, with the end of a long one written as the largest integer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxfuse.view.aten.absorbing import Absorbed
from fxfuse.view.rules.registry import rule, see_through
from fxfuse.view.rules.splitting import cut_of
from fxfuse.view.values import Value

if TYPE_CHECKING:
    from fxfuse.view.view import View

_TO_THE_END = (1 << 63) - 1


@see_through("slice")
def slice_of_all(view: View, value: Value) -> Value | None:
    """``x[0:]`` of a dimension is x, however long it is."""
    source = view.operand(value.args["input"])
    whole = not {"start", "step"} & set(value.args) and value.args.get("stop") in (None, _TO_THE_END)
    return source if whole and isinstance(source, Value) else None


@rule("slice", "part")
def slice_in_canonical_words(view: View, value: Value) -> Value | None:
    """One of the equal parts that ``chunk`` would give, or a slice with its borders counted from the front."""
    source, dim = view.operand(value.args["input"]), view.dimension(value)
    size = source.shape[dim] if isinstance(source, Value) and source.shape and type(dim) is int else None
    start, stop, step = value.args.get("start"), value.args.get("stop"), value.args.get("step", 1)
    if type(size) is not int or not isinstance(start, int | None) or not isinstance(stop, int | None):
        return None
    cut = cut_of(size, start, stop, step)
    if cut is None or not cut[0]:
        return None
    args = {"input": value.args["input"], "dim": dim, **cut[1]}
    return None if args == value.args else value.become(cut[0], args, "a slice")


@rule("squeeze", "select", reads="part")
def part_of_one(view: View, value: Value) -> Value | None:
    """One of ``unbind``, as decompositions split it."""
    absorbed, dim = Absorbed(view), view.dimension(value)
    part = absorbed.take(value.args["input"], "part")
    x = view.operand(part.args["input"]) if part is not None else None
    if part is None or not isinstance(x, Value) or not x.shape or part.args["dim"] != dim:
        return None
    if part.args["of"] != x.shape[dim]:
        return None
    args = {"input": x, "dim": dim, "index": part.args["index"]}
    return value.become("select", args, "one of unbind", absorbed.nodes)
