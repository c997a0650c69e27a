"""Arithmetic: spellings of differences, signs, quotients by powers of two, masks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import fx

from fxfuse.safeguards import safeguard
from fxfuse.view.rules.conditions import is_number
from fxfuse.view.rules.registry import rule
from fxfuse.view.values import Value

if TYPE_CHECKING:
    from fxfuse.view.view import View

POWER_OF_TWO = safeguard("power_of_two", "a quotient taken for the product with a reciprocal that is itself rounded")


def is_floating(view: View, value: Value) -> bool:
    """Whether a value is of floating point; a pattern's whose dtype is open is taken to be."""
    dtype = value.dtype
    if isinstance(dtype, torch.dtype):
        return dtype.is_floating_point
    return view.symbolic


@rule("rsub", "sub")
def reversed_difference(view: View, value: Value) -> Value | None:
    if "alpha" in value.args:
        return None
    args = {"input": value.args["other"], "other": value.args["input"]}
    return value.become("sub", args, "rsub(x, y) = y - x")


@rule("mul", "neg", reads="number")
def times_minus_one(view: View, value: Value) -> Value | None:
    for name, other in (("input", "other"), ("other", "input")):
        if is_number(value.args[name], -1) and isinstance(value.args[other], fx.Node):
            source = view.operand(value.args[other])
            if isinstance(source, Value) and source.dtype == value.dtype and is_floating(view, source):
                return value.become("neg", {"input": value.args[other]}, "x * -1 = -x")
    return None


@rule("div", "mul")
def divided_by_power_of_two(view: View, value: Value) -> Value | None:
    """``x / 8`` is ``x * 0.125``: both are the exact quotient, rounded once. Others are rounded themselves."""
    divisor = value.args["other"]
    if type(divisor) not in (int, float) or "rounding_mode" in value.args or divisor == 0:
        return None
    if not math.isfinite(divisor) or not POWER_OF_TWO(abs(math.frexp(divisor)[0]) == 0.5):
        return None
    source = view.operand(value.args["input"])
    if not isinstance(source, Value) or not is_floating(view, source) or not 2.0**-14 <= abs(divisor) <= 2.0**14:
        return None
    return value.become("mul", {"input": value.args["input"], "other": 1.0 / divisor}, "x / 2**k = x * 2**-k")


@rule("masked_fill", "where")
def filled_where(view: View, value: Value) -> Value | None:
    """``x.masked_fill(mask, c)`` is ``where(mask, c, x)`` where the number has a place in x's dtype."""
    number = value.args["value"]
    source = view.operand(value.args["input"])
    if type(number) not in (int, float) or not isinstance(source, Value) or not is_floating(view, source):
        return None
    args = {"condition": value.args["mask"], "input": number, "other": value.args["input"]}
    return value.become("where", args, "masked_fill = where")


@rule("var", "var")
@rule("std", "std")
def correction_of_flag(view: View, value: Value) -> Value | None:
    """``unbiased=False`` is ``correction=0``, and True is the default."""
    correction = value.args.get("correction")
    if type(correction) is not bool or type(value.args.get("dim")) is bool:
        return None
    args = {name: 0 if name == "correction" else arg for name, arg in value.args.items()}
    if correction:
        del args["correction"]
    return value.become(value.op, args, "unbiased = correction")


@rule("norm", "vector_norm")
def norm_over_a_dimension(view: View, value: Value) -> Value | None:
    p = value.args.get("p", 2)
    if type(value.args.get("dim")) is not int or not (p == "fro" or is_number(p, 2)):
        return None
    args = {name: arg for name, arg in value.args.items() if name != "p"}
    return value.become("vector_norm", args, "norm over one dimension")


@rule("arange", "arange")
def range_from_zero(view: View, value: Value) -> Value | None:
    if "end" in value.args:
        return None
    args = {name: arg for name, arg in value.args.items() if name != "start"}
    return value.become("arange", {"start": 0, "end": value.args["start"], **args}, "arange(n) = arange(0, n)")
