"""Activations written as formulas. Each rounds between its steps, so these equalities are for fp32 and wider."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fxfuse.view.rules.conditions import factors, is_constant, is_number, is_same, is_wide
from fxfuse.view.rules.registry import rule
from fxfuse.view.values import Value

if TYPE_CHECKING:
    from fxfuse.view.view import View


@rule("mul", "silu", reads="sigmoid")
def times_own_sigmoid(view: View, value: Value) -> Value | None:
    """In low precision the sigmoid is rounded before the product; only fp32 and wider are one function."""
    return _times_function_of_itself(view, value, "sigmoid", "silu")


@rule("mul", "mish", reads="tanh")
def times_tanh_of_softplus(view: View, value: Value) -> Value | None:
    for name, other in (("input", "other"), ("other", "input")):
        gate, x = view.operand(value.args[name]), view.operand(value.args[other])
        if not isinstance(gate, Value) or gate.op != "tanh":
            continue
        soft = view.operand(gate.args["input"])
        if not isinstance(soft, Value) or soft.op != "softplus" or set(soft.args) != {"input"}:
            continue
        if is_same(x, view.operand(soft.args["input"])) and is_wide(view, value):
            return value.become("mish", {"input": x}, "x*tanh(softplus(x)) = mish(x)", (*soft.nodes, *gate.nodes))
    return None


def _times_function_of_itself(view: View, value: Value, inner: str, op: str) -> Value | None:
    for name, other in (("input", "other"), ("other", "input")):
        gate = view.operand(value.args[name])
        if not isinstance(gate, Value) or gate.op != inner:
            continue
        x = view.operand(value.args[other])
        if is_same(x, view.operand(gate.args["input"])) and is_wide(view, value):
            return value.become(op, {"input": x}, f"x*{inner}(x) = {op}(x)", gate.nodes)
    return None


@rule("mul", "gelu", reads="mul")
def half_times_one_plus(view: View, value: Value) -> Value | None:
    """``0.5 * x * (1 + erf(x / sqrt(2)))``, and the tanh form of GPT-2, BLOOM and ``gelu_fast``."""
    parts, nodes = factors(view, value)
    if len(parts) != 3:
        return None
    halves = [p for p in parts if is_number(p, 0.5)]
    bells = [p for p in parts if isinstance(p, Value) and p.op == "add"]
    if len(halves) != 1 or not bells:
        return None
    for bell in bells:
        (x,) = [p for p in parts if p is not bell and p is not halves[0]] or (None,)
        curve = _one_plus(view, bell)
        if not isinstance(x, Value) or not isinstance(curve, Value) or curve.op not in ("erf", "tanh"):
            continue
        inside = _erf_argument(view, curve, x) if curve.op == "erf" else _tanh_argument(view, curve, x)
        if inside is None or not is_wide(view, value):
            continue
        args: dict[str, Any] = {"input": x} if curve.op == "erf" else {"input": x, "approximate": "tanh"}
        return value.become("gelu", args, f"gelu by its {curve.op}", (*inside, *curve.nodes, *bell.nodes, *nodes))
    return None


def _one_plus(view: View, value: Value) -> Any:
    """``y`` of ``1 + y``."""
    a, b = view.operand(value.args["input"]), view.operand(value.args["other"])
    if is_number(a, 1):
        return b
    return a if is_number(b, 1) else None


def _erf_argument(view: View, curve: Value, x: Value) -> list[Any] | None:
    """The nodes of ``x / sqrt(2)``."""
    scaled = view.operand(curve.args["input"])
    if not isinstance(scaled, Value):
        return None
    if scaled.op == "div" and "rounding_mode" not in scaled.args:
        fits = is_same(view.operand(scaled.args["input"]), x)
        return list(scaled.nodes) if fits and is_constant(scaled.args["other"], math.sqrt(2.0), curve) else None
    if scaled.op == "mul":
        other = _beside(view, scaled, x)
        return list(scaled.nodes) if is_constant(other, math.sqrt(0.5), curve) else None
    return None


def _beside(view: View, product: Value, x: Value) -> Any:
    """The other factor of a product with ``x``."""
    a, b = view.operand(product.args["input"]), view.operand(product.args["other"])
    return b if a is x else a if b is x else None


def _tanh_argument(view: View, curve: Value, x: Value) -> list[Any] | None:
    """The nodes of ``sqrt(2/pi) * (x + 0.044715 * x**3)`` or of ``sqrt(2/pi) * x * (1 + 0.044715 * x * x)``."""
    product = view.operand(curve.args["input"])
    if not isinstance(product, Value) or product.op != "mul":
        return None
    parts, nodes = factors(view, product)
    rest = [p for p in parts if not is_constant(p, math.sqrt(2.0 / math.pi), curve)]
    if len(rest) != len(parts) - 1:
        return None
    bare = [p for p in rest if p is x]
    sums = [p for p in rest if isinstance(p, Value) and p.op == "add"]
    if len(sums) != 1 or len(rest) != 1 + len(bare) or len(bare) > 1:
        return None
    (total,) = sums
    if bare:
        cubic, power = _one_plus(view, total), 2
    else:
        cubic, power = _beside(view, total, x), 3
    inside = _cubic(view, cubic, x, power, curve)
    return None if inside is None else [*inside, *total.nodes, *nodes, *product.nodes]


def _cubic(view: View, value: Any, x: Value, power: int, curve: Value) -> list[Any] | None:
    """The nodes of ``0.044715 * x**power``, with the power spelled in any way."""
    if not isinstance(value, Value) or value.op != "mul":
        return None
    parts, nodes = factors(view, value)
    rest = [p for p in parts if not is_constant(p, 0.044715, curve)]
    if len(rest) != len(parts) - 1:
        return None
    count = 0
    for part in rest:
        exponent = _power_of(view, part, x)
        if exponent is None:
            return None
        count += exponent
        if part is not x:
            nodes = [*part.nodes, *nodes]
    return [*nodes, *value.nodes] if count == power else None


def _power_of(view: View, value: Any, x: Value) -> int | None:
    if is_same(value, x):
        return 1
    if not isinstance(value, Value) or value.op not in ("square", "pow") or view.operand(value.args["input"]) is not x:
        return None
    if value.op == "square":
        return 2
    return 3 if is_number(value.args["exponent"], 3) else None
