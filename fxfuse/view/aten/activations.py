"""SiLU as Inductor decomposes it, and as CPU and CUDA kernels compute it themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxfuse.safeguards import safeguard
from fxfuse.view.aten.absorbing import Absorbed
from fxfuse.view.rules.conditions import is_number, is_same, is_wide
from fxfuse.view.rules.registry import rule
from fxfuse.view.values import Value

if TYPE_CHECKING:
    from fxfuse.view.view import View

ONE_PLUS = safeguard("one_plus", "x / (c + exp(-x)), with another number than one, taken for silu")


@rule("div", "silu", reads="add")
def over_one_plus_exp(view: View, value: Value) -> Value | None:
    """``x / (1 + exp(-x))``. In low precision each step is rounded, by ``silu`` only the last."""
    if "rounding_mode" in value.args:
        return None
    x, absorbed = view.operand(value.args["input"]), Absorbed(view)
    total = absorbed.take(value.args["other"], "add")
    power = _beside_one(absorbed, total) if total is not None and "alpha" not in total.args else None
    minus = absorbed.take(power.args["input"], "neg") if power is not None else None
    if minus is None or not is_same(x, view.operand(minus.args["input"])) or not is_wide(view, value):
        return None
    return value.become("silu", {"input": x}, "x/(1+exp(-x)) = silu(x)", absorbed.nodes)


def _beside_one(absorbed: Absorbed, total: Value) -> Value | None:
    """The power in ``1 + exp(y)``."""
    for name, other in (("input", "other"), ("other", "input")):
        number: Any = absorbed.view.operand(total.args[name])
        if isinstance(number, int | float) and ONE_PLUS(is_number(number, 1)):
            return absorbed.take(total.args[other], "exp")
    return None
