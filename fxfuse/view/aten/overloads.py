"""ATen's overloads: which one is which row of `view/ops.py`, where the row does not name it itself."""

from __future__ import annotations

from typing import Any

import torch

from fxfuse.view.ops import FUNCTIONS, REQUIRED, SPECS, OpSpec

aten, prims = torch.ops.aten, torch.ops.prims

_SAME_ARGUMENTS = {
    "sub": "sub.Scalar",
    "square": "square.default",
    "abs": "abs.default",
    "sign": "sign.default",
    "exp2": "exp2.default",
    "expm1": "expm1.default",
    "log": "log.default",
    "log1p": "log1p.default",
    "log2": "log2.default",
    "erf": "erf.default",
    "sin": "sin.default",
    "cos": "cos.default",
    "maximum": "maximum.default",
    "minimum": "minimum.default",
    "eq": "eq.Tensor eq.Scalar",
    "ne": "ne.Tensor ne.Scalar",
    "lt": "lt.Tensor lt.Scalar",
    "le": "le.Tensor le.Scalar",
    "gt": "gt.Tensor gt.Scalar",
    "ge": "ge.Tensor ge.Scalar",
    "bitwise_and": "bitwise_and.Tensor bitwise_and.Scalar",
    "bitwise_or": "bitwise_or.Tensor bitwise_or.Scalar",
    "bitwise_not": "bitwise_not.default",
    "logical_and": "logical_and.default",
    "logical_or": "logical_or.default",
    "logical_not": "logical_not.default",
    "where": "where.self",
    "masked_fill": "masked_fill.Scalar masked_fill.Tensor",
    "tril": "tril.default",
    "triu": "triu.default",
    "amax": "amax.default",
    "amin": "amin.default",
    "argmax": "argmax.default",
    "cumsum": "cumsum.default",
    "topk": "topk.default",
    "var": "var.correction",
    "var_mean": "var_mean.correction",
    "to": "to.dtype to.dtype_layout to.device to.other type_as.default",
    "t": "numpy_T.default",
    "flatten": "flatten.using_ints",
    "unflatten": "unflatten.int",
    "expand_as": "expand_as.default",
    "repeat": "repeat.default",
    "squeeze": "squeeze.dims squeeze.default",
    "unbind": "unbind.int",
    "chunk": "chunk.default",
    "split": "split.sizes split_with_sizes.default",
    "narrow": "narrow.default",
    "select": "select.int",
    "cat": "cat.default",
    "stack": "stack.default",
    "gather": "gather.default",
    "index_select": "index_select.default",
    "matmul": "bmm.default",
    "rms_norm": "rms_norm.default",
    "scaled_dot_product_attention": "scaled_dot_product_attention.default",
}
"""Overloads that take the arguments of their row."""


def _row(name: str, *params: str | tuple[str, Any], alias: bool = False, distinctive: bool = False) -> OpSpec:
    named = tuple((p, REQUIRED) if isinstance(p, str) else p for p in params)
    return OpSpec(name, named, alias=alias, distinctive=distinctive)


_OWN_ARGUMENTS: tuple[tuple[Any, OpSpec], ...] = (
    (aten.softmax.int, _row("softmax", "input", "dim", ("dtype", None), distinctive=True)),
    (aten._softmax.default, _row("softmax", "input", "dim", ("half_to_float", False), distinctive=True)),
    (
        aten.layer_norm.default,
        _row("layer_norm", "input", "normalized_shape", ("weight", None), ("bias", None), ("eps", 1e-5),
             ("cudnn_enable", None), distinctive=True),
    ),
    (aten.scalar_tensor.default, _row("scalar_tensor", "value", ("dtype", None), ("layout", None), ("device", None),
                                      ("pin_memory", None))),
    (aten.dropout.default, _row("dropout", "input", "p", "train", alias=True)),
    (
        aten.embedding.default,
        _row("embedding", "weight", "input", ("padding_idx", -1), ("scale_grad_by_freq", False), ("sparse", False),
             distinctive=True),
    ),
    (aten.slice.Tensor, _row("slice", "input", "dim", ("start", 0), ("stop", None), ("step", 1), alias=True)),
    (aten.native_layer_norm.default, _row("native_layer_norm", "input", "normalized_shape", "weight", "bias", "eps")),
    (
        aten._fused_rms_norm.default,
        _row("fused_rms_norm", "input", "normalized_shape", ("weight", None), ("eps", None)),
    ),
)  # fmt: skip
"""Overloads whose arguments have an order or names of their own, and ops that only decompositions are made of."""

for _name, _overloads in _SAME_ARGUMENTS.items():
    for _overload in _overloads.split():
        _packet, _, _which = _overload.partition(".")
        FUNCTIONS.setdefault(getattr(getattr(aten, _packet), _which), SPECS[_name])
FUNCTIONS[prims.convert_element_type.default] = SPECS["to"]
for _function, _spec in _OWN_ARGUMENTS:
    SPECS.setdefault(_spec.name, _spec)
    FUNCTIONS.setdefault(_function, _spec)
