"""Norms of which ATen gives more than the result: ``native_layer_norm`` and ``_fused_rms_norm``.

Their other results, the statistics that a backward wants, are readers' like any other value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxfuse.view.aten.absorbing import Absorbed
from fxfuse.view.rules.conditions import is_number
from fxfuse.view.rules.registry import rule
from fxfuse.view.values import Value

if TYPE_CHECKING:
    from fxfuse.view.view import View


@rule("getitem", "layer_norm", reads="native_layer_norm")
def first_of_native_layer_norm(view: View, value: Value) -> Value | None:
    return _first_of(view, value, "native_layer_norm", "layer_norm")


@rule("getitem", "rms_norm", reads="fused_rms_norm")
def first_of_fused_rms_norm(view: View, value: Value) -> Value | None:
    return _first_of(view, value, "fused_rms_norm", "rms_norm")


def _first_of(view: View, value: Value, whole: str, op: str) -> Value | None:
    absorbed = Absorbed(view)
    norm = absorbed.take(value.args["input"], whole)
    if norm is None or not is_number(value.args["index"], 0):
        return None
    args = {name: given for name, given in norm.args.items() if given is not None}
    return value.become(op, args, f"{whole}()[0] = {op}", absorbed.nodes)
