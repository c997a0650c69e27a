"""Projections: every spelling of ``linear``, and contractions that are matrix products."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxfuse.safeguards import safeguard
from fxfuse.view.ops import is_transpose_attribute, spec_of
from fxfuse.view.rules.conditions import is_parameter, is_wide
from fxfuse.view.rules.registry import rule
from fxfuse.view.values import SymbolicMeta, Value, same_shape, same_size

if TYPE_CHECKING:
    from fxfuse.view.view import View

MATRIX_WEIGHT = safeguard("matrix_weight", "a batch of products taken for a projection by one weight")
BIAS_IS_A_ROW = safeguard("bias_is_a_row", "a matrix added to a product taken for a bias")
SAME_LABELS = safeguard("same_labels", "an einsum over other dimensions taken for a matrix product")


@rule("matmul", "linear", reads="transpose")
def matmul_with_transposed(view: View, value: Value) -> Value | None:
    """``x @ w.t()``, with ``w`` of two dimensions, is ``linear(x, w)``."""
    weight = view.operand(value.args["other"])
    if not isinstance(weight, Value):
        return None
    source = transposed_weight(view, weight)
    x = view.operand(value.args["input"])
    if source is None or not isinstance(x, Value) or x.rank == 0:
        return None
    return value.become("linear", {"input": x, "weight": source}, "x @ w.t() = linear(x, w)", weight.nodes)


def transposed_weight(view: View, value: Value) -> Value | None:
    """``w``, where the value is its transpose over its only two dimensions: an input or its transpose, or so spelled.

    Of two computed tensors (attention scores) the product stays one.
    """
    if value.op != "transpose" or (value.args["dim0"], value.args["dim1"]) not in _AS_MATRIX:
        return None
    source = view.operand(value.args["input"])
    if not isinstance(source, Value):
        return None
    spec = spec_of(value.node)
    as_matrix = spec.name == "t" if spec is not None else is_transpose_attribute(value.node, "T")
    if view.symbolic:
        return source if as_matrix or is_parameter(source) else None
    inner = view.operand(source.args["input"]) if source.op == "transpose" else source
    is_input = isinstance(inner, Value) and inner.leaf is not None
    return source if (as_matrix or is_input) and MATRIX_WEIGHT(source.rank == 2) else None


_AS_MATRIX = {(-2, -1), (0, 1)}


@rule("addmm", "linear")
def addmm_of_row(view: View, value: Value) -> Value | None:
    """``addmm(b, x, w)`` is ``linear(x, w.t(), b)`` where b is one row, as in GPT-2's Conv1D."""
    bias, weight = view.operand(value.args["input"]), view.operand(value.args["mat2"])
    if not isinstance(bias, Value) or not isinstance(weight, Value) or {"alpha", "beta"} & set(value.args):
        return None
    if view.symbolic:
        if not is_parameter(bias):
            return None
    elif not BIAS_IS_A_ROW(bias.rank == 1):
        return None
    source = transposed_weight(view, weight)
    step = "addmm(b, x, w) = linear(x, w.t(), b)"
    if source is not None:
        args = {"input": value.args["mat1"], "weight": source, "bias": bias}
        return value.become("linear", args, step, weight.nodes)
    shape = weight.shape
    meta = SymbolicMeta(weight.dtype, None if shape is None else shape[::-1], weight.device)
    turned = value.part("transpose", {"input": weight, "dim0": -2, "dim1": -1}, meta)
    made = value.become("linear", {"input": value.args["mat1"], "weight": turned, "bias": bias}, step)
    turned.owner = made
    return made


@rule("add", "linear", reads="linear")
def bias_added(view: View, value: Value) -> Value | None:
    """``linear(x, w) + b``: in low precision the product is rounded before the sum, so fp32 and wider only."""
    for name, other in (("input", "other"), ("other", "input")):
        product, bias = view.operand(value.args[name]), view.operand(value.args[other])
        if not isinstance(product, Value) or product.op != "linear" or "bias" in product.args or not is_parameter(bias):
            continue
        if product.owner is not None or len(product.node.users) != 1 or "alpha" in value.args:
            continue
        if not view.symbolic:
            size = product.shape[-1] if product.shape else None
            if not BIAS_IS_A_ROW(bias.rank == 1 and same_size(bias.shape[0], size)) or bias.dtype != product.dtype:
                continue
        if is_wide(view, value):
            args = {**product.args, "bias": bias}
            return value.become("linear", args, "linear(x, w) + b = linear(x, w, b)", product.nodes)
    return None


@rule("einsum", "matmul")
def einsum_of_matrices(view: View, value: Value) -> Value | None:
    """A contraction of two tensors over one dimension: ``...d,nd->...n``, ``bhqd,bhkd->bhqk``, ``bhqk,bhkd->bhqd``."""
    equation, operands = value.args["equation"], value.args.get("operands")
    if not isinstance(equation, str) or not isinstance(operands, tuple) or len(operands) != 2:
        return None
    x, w = view.operand(operands[0]), view.operand(operands[1])
    labels = _labels(equation)
    if labels is None or not isinstance(x, Value) or not isinstance(w, Value):
        return None
    left, right, out = labels
    if not left or len(right) < 2 or not out or not (view.symbolic or (x.shape is not None and w.shape is not None)):
        return None
    lead, d, n = left[:-1], left[-1], out[-1]
    batch = right[:-2]
    distinct = len({*left, n}) == len(left) + 1 and len(set(right)) == len(right)
    together = not batch or (batch == lead[:-1] and len(lead) == len(batch) + 1)
    if not SAME_LABELS(distinct and together and out[:-1] == lead):
        return None
    if set(right[-2:]) != {d, n} or "*" in right[-2:]:
        return None
    if not view.symbolic and not _of_one_size(x, w, right.index(d) - len(right), bool(batch)):
        return None
    if right[-2:] == [d, n]:
        return value.become("matmul", {"input": x, "other": w}, "einsum = matmul")
    if not batch:
        return value.become("linear", {"input": x, "weight": w}, "einsum = linear")
    turned = value.part("transpose", {"input": w, "dim0": -2, "dim1": -1}, SymbolicMeta(w.dtype, None, w.device))
    made = value.become("matmul", {"input": x, "other": turned}, "einsum = matmul")
    turned.owner = made
    return made


def _labels(equation: str) -> tuple[list[str], list[str], list[str]] | None:
    """The labels of two operands and of the result, an ellipsis being one."""
    inputs, arrow, out = equation.replace(" ", "").replace("...", "*").partition("->")
    sides = inputs.split(",")
    if not arrow or len(sides) != 2 or out.count("*") > 1:
        return None
    return list(sides[0]), list(sides[1]), list(out)


def _of_one_size(x: Value, w: Value, place: int, batched: bool) -> bool:
    """Whether contracted and batch dimensions are of one size each: einsum would broadcast one of size one.

    Of two dtypes a product of nothing (no rows) is no error in einsum, and is one in ``linear``.
    """
    left, right = x.shape or (), w.shape or ()
    if x.dtype != w.dtype:
        return False
    if not left or len(right) < 2 or not same_size(left[-1], right[place]):
        return False
    return same_shape(left[:-2], right[:-2]) if batched else len(right) == 2
