"""``linear`` as export decomposes it where the rows cannot be flattened: a batch of products with one weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxfuse.safeguards import safeguard
from fxfuse.view.aten.absorbing import Absorbed
from fxfuse.view.rules.registry import rule
from fxfuse.view.values import Value, same_shape

if TYPE_CHECKING:
    from fxfuse.view.view import View

ONE_WEIGHT = safeguard("one_weight", "a batch of different matrices taken for one weight")
WEIGHT_TRANSPOSED = safeguard("batch_weight_transposed", "x @ w, with w square, taken for linear(x, w)")


@rule("matmul", "linear", reads="expand")
def product_with_repeated_weight(view: View, value: Value) -> Value | None:
    """``bmm(x, w.t().expand(batch, -1, -1))`` is ``linear(x, w)``."""
    x, absorbed = view.operand(value.args["input"]), Absorbed(view)
    repeated = absorbed.take(value.args["other"], "expand")
    if repeated is None or not isinstance(x, Value) or x.rank != 3:
        return None
    turned = absorbed.take(repeated.args["input"], "transpose")
    if not WEIGHT_TRANSPOSED(turned is not None):
        return None
    weight = view.operand(repeated.args["input"] if turned is None else turned.args["input"])
    if not isinstance(weight, Value) or weight.shape is None or repeated.shape is None or len(weight.shape) != 2:
        return None
    if not ONE_WEIGHT(same_shape(repeated.shape[-2:], weight.shape[::-1])):
        return None
    return value.become("linear", {"input": x, "weight": weight}, "a batch of one weight", absorbed.nodes)
