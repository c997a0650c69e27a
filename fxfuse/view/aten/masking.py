"""Masks as decompositions spell them, with a number in a tensor of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxfuse.safeguards import safeguard
from fxfuse.view.aten.absorbing import Absorbed
from fxfuse.view.rules.registry import rule
from fxfuse.view.values import Value

if TYPE_CHECKING:
    from fxfuse.view.view import View

SAME_NUMBER = safeguard("same_number", "a number that its own dtype rounds taken for the number as it is written")


@rule("where", "where", reads="scalar_tensor")
def number_in_a_tensor(view: View, value: Value) -> Value | None:
    """``where(mask, scalar_tensor(c), x)`` is ``where(mask, c, x)`` where the tensor has x's dtype."""
    for name in ("input", "other"):
        absorbed = Absorbed(view)
        held = absorbed.take(value.args[name], "scalar_tensor")
        number = held.args["value"] if held is not None else None
        if held is None or type(number) not in (int, float):
            continue
        if SAME_NUMBER(held.dtype is not None and held.dtype == value.dtype):
            return value.become("where", {**value.args, name: number}, "a number in a tensor", absorbed.nodes)
    return None
