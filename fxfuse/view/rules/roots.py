"""Squares, roots and means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxfuse.safeguards import safeguard
from fxfuse.view.rules.conditions import is_number, is_wide
from fxfuse.view.rules.registry import rule
from fxfuse.view.values import SymbolicMeta, Value, same_size

if TYPE_CHECKING:
    from fxfuse.view.view import View

EXPONENT = safeguard("exponent", "a power with another exponent taken for a square or a root")
COUNT = safeguard("count", "a sum divided by another number than its terms' taken for their mean")


@rule("pow", "square")
def pow_two(view: View, value: Value) -> Value | None:
    return _power(value, 2, "square")


@rule("pow", "sqrt")
def pow_half(view: View, value: Value) -> Value | None:
    return _power(value, 0.5, "sqrt")


@rule("pow", "rsqrt")
def pow_minus_half(view: View, value: Value) -> Value | None:
    """Last place of fp32 may differ, which a rounding to bf16 shows now and then."""
    return _power(value, -0.5, "rsqrt") if is_wide(view, value) else None


def _power(value: Value, exponent: float, op: str) -> Value | None:
    given = value.args["exponent"]
    if type(given) not in (int, float) or not EXPONENT(is_number(given, exponent)):
        return None
    return value.become(op, {"input": value.args["input"]}, f"pow(x, {exponent}) = {op}(x)")


@rule("mul", "square", reads="itself")
def product_with_itself(view: View, value: Value) -> Value | None:
    a, b = view.operand(value.args["input"]), view.operand(value.args["other"])
    if isinstance(a, Value) and a is b:
        return value.become("square", {"input": a}, "x * x = square(x)")
    return None


def _root(view: View, name: str, value: Value) -> Value | None:
    """The square root that this operand is, where replacing it moves no rounding of a low precision."""
    root = view.operand(value.args[name])
    if isinstance(root, Value) and root.op == "sqrt" and is_wide(view, root):
        return root
    return None


@rule("reciprocal", "rsqrt", reads="sqrt")
def reciprocal_of_root(view: View, value: Value) -> Value | None:
    """Last place of fp32 may differ."""
    root = _root(view, "input", value)
    return value.become("rsqrt", dict(root.args), "1/sqrt(x) = rsqrt(x)", root.nodes) if root else None


@rule("div", "rsqrt", reads="sqrt")
def one_over_root(view: View, value: Value) -> Value | None:
    """Last place of fp32 may differ."""
    if "rounding_mode" in value.args or not is_number(value.args["input"], 1):
        return None
    root = _root(view, "other", value)
    return value.become("rsqrt", dict(root.args), "1/sqrt(x) = rsqrt(x)", root.nodes) if root else None


@rule("div", "mul", reads="sqrt")
def divided_by_root(view: View, value: Value) -> Value | None:
    """``x / sqrt(v)`` is ``x * rsqrt(v)``; last place of fp32 may differ, so lower precisions are left alone."""
    if "rounding_mode" in value.args:
        return None
    numerator, root = view.operand(value.args["input"]), _root(view, "other", value)
    if root is None or not isinstance(numerator, Value):
        return None
    factor = value.part("rsqrt", dict(root.args), root.meta)
    product = value.become("mul", {"input": numerator, "other": factor}, "x/sqrt(v) = x*rsqrt(v)", root.nodes)
    factor.owner = product
    return product


@rule("div", "mean", reads="sum")
def sum_over_count(view: View, value: Value) -> Value | None:
    """``x.sum(-1, keepdim=True) / n`` is the mean where n is the size of that dimension."""
    total, count = view.operand(value.args["input"]), value.args["other"]
    if not isinstance(total, Value) or total.op != "sum" or "rounding_mode" in value.args or type(count) is not int:
        return None
    source = view.operand(total.args["input"])
    dim = view.dimension(total)
    if not isinstance(source, Value) or source.shape is None or type(dim) is not int:
        return None
    if source.dtype != total.dtype or not is_wide(view, total) or not COUNT(same_size(source.shape[dim], count)):
        return None
    return value.become("mean", dict(total.args), "sum(x)/n = mean(x)", total.nodes)


@rule("mean", "mean")
@rule("sum", "sum")
@rule("softmax", "softmax")
@rule("log_softmax", "log_softmax")
def cast_first(view: View, value: Value) -> Value | None:
    """``x.mean(-1, dtype=torch.float32)`` casts x first."""
    dtype = value.args.get("dtype")
    source = view.operand(value.args["input"])
    if dtype is None or not isinstance(source, Value):
        return None
    args = {name: arg for name, arg in value.args.items() if name != "dtype"}
    step = f"{value.op} of a cast"
    if source.dtype == dtype:
        return value.become(value.op, args, step)
    cast = value.part("cast", {"input": source, "dtype": dtype}, SymbolicMeta(dtype, source.shape, source.device))
    made = value.become(value.op, {**args, "input": cast}, step)
    cast.owner = made
    return made
