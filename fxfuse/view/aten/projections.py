"""Products as decompositions spell them: over flattened rows, and in batches where the rows cannot be flattened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxfuse.safeguards import safeguard
from fxfuse.view.aten.absorbing import Absorbed
from fxfuse.view.rules.registry import rule
from fxfuse.view.values import Value, same_shape, same_size

if TYPE_CHECKING:
    from fxfuse.view.view import View

ONE_WEIGHT = safeguard("one_weight", "a batch of different matrices taken for one weight")
ROWS_KEPT = safeguard("rows_kept", "a reshape around a product that moves numbers from one row to another")
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


@rule("reshape", "matmul", reads="matmul")
def product_of_flat_rows(view: View, value: Value) -> Value | None:
    """``mm(x.view(-1, k), m).view(..., n)`` is ``x @ m``: the rows are the same, in the same order."""
    absorbed = Absorbed(view)
    product = absorbed.take(value.args["input"], "matmul")
    rows = product.args["input"] if product is not None else None
    flat = absorbed.take(rows, "rows") or absorbed.take(rows, "reshape")
    x = view.operand(flat.args["input"]) if flat is not None else None
    if product is None or flat is None or not isinstance(x, Value) or not (x.shape and value.shape):
        return None
    other = view.operand(product.args["other"])
    if not isinstance(other, Value) or other.rank != 2 or product.rank != 2 or flat.shape is None:
        return None
    if not ROWS_KEPT(same_shape(x.shape[:-1], value.shape[:-1]) and same_size(x.shape[-1], flat.shape[-1])):
        return None
    return value.become("matmul", {**product.args, "input": x}, "product of flattened rows", absorbed.nodes)
