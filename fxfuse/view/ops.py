"""Spellings: which function, method or overload is which canonical op, and what its arguments are called.

One row a canonical op. A row's signature is ``name`` or ``name=default``; ``*name`` collects sizes given one by one.
An argument that is omitted, None or equal to its default is one thing, and is left out of the canonical form.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

aten = torch.ops.aten


@dataclass(frozen=True)
class OpSpec:
    """A canonical op: its argument names with defaults, and what may be assumed of it."""

    name: str
    params: tuple[tuple[str, Any], ...]
    variadic: str | None = None
    commutative: bool = False
    alias: bool = False  # the result may share storage with ``input``
    distinctive: bool = False  # rare enough in real graphs to start a search from


REQUIRED = object()
_RENAMED = {
    "axis": "dim", "keepdims": "keepdim", "self": "input", "x1": "input", "x2": "other",
    "split_size": "size", "split_size_or_sections": "size", "split_sizes": "size",
}  # fmt: skip
SPECS: dict[str, OpSpec] = {}
FUNCTIONS: dict[Any, OpSpec] = {}
METHODS: dict[str, OpSpec] = {}


def _op(
    name: str,
    signature: str,
    functions: tuple[Any, ...] = (),
    methods: str = "",
    *,
    commutative: bool = False,
    alias: bool = False,
    distinctive: bool = False,
) -> None:
    params: list[tuple[str, Any]] = []
    variadic = None
    for word in signature.split():
        key, _, default = word.partition("=")
        if key.startswith("*"):
            variadic = key = key[1:]
        params.append((key, eval(default) if default else REQUIRED))
    spec = OpSpec(name, tuple(params), variadic, commutative, alias, distinctive)
    SPECS[name] = spec
    for function in functions:
        FUNCTIONS[function] = spec
    for method in methods.split():
        METHODS[method] = spec


_op("add", "input other alpha=1", (operator.add, torch.add, aten.add.Tensor, aten.add.Scalar), "add", commutative=True)
_op("sub", "input other alpha=1", (operator.sub, torch.sub, torch.subtract, aten.sub.Tensor), "sub subtract")
_op("mul", "input other", (operator.mul, torch.mul, torch.multiply, aten.mul.Tensor, aten.mul.Scalar),
    "mul multiply", commutative=True)  # fmt: skip
_op("div", "input other rounding_mode=None",
    (operator.truediv, torch.div, torch.divide, torch.true_divide, aten.div.Tensor, aten.div.Scalar),
    "div divide true_divide")  # fmt: skip
_op("neg", "input", (operator.neg, torch.neg, torch.negative, aten.neg.default), "neg negative")
_op("pow", "input exponent", (operator.pow, torch.pow, aten.pow.Tensor_Scalar), "pow")
_op("square", "input", (torch.square,), "square")
_op("sqrt", "input", (torch.sqrt, aten.sqrt.default), "sqrt", distinctive=True)
_op("rsqrt", "input", (torch.rsqrt, aten.rsqrt.default), "rsqrt", distinctive=True)
_op("reciprocal", "input", (torch.reciprocal, aten.reciprocal.default), "reciprocal")
_op("mean", "input dim=None keepdim=False dtype=None", (torch.mean, aten.mean.dim, aten.mean.default), "mean")
_op("sum", "input dim=None keepdim=False dtype=None", (torch.sum, aten.sum.dim_IntList, aten.sum.default), "sum")
_op("sigmoid", "input", (torch.sigmoid, F.sigmoid, torch.special.expit, aten.sigmoid.default), "sigmoid",
    distinctive=True)  # fmt: skip
_op("tanh", "input", (torch.tanh, F.tanh, aten.tanh.default), "tanh", distinctive=True)
_op("exp", "input", (torch.exp, aten.exp.default), "exp", distinctive=True)
_op("silu", "input inplace=False", (F.silu, torch._C._nn.silu, aten.silu.default), distinctive=True)
_op("gelu", "input approximate='none'", (F.gelu, torch._C._nn.gelu, aten.gelu.default), distinctive=True)
_op("relu", "input inplace=False", (F.relu, torch.relu, aten.relu.default), "relu", distinctive=True)
_op("softmax", "input dim=None _stacklevel=3 dtype=None", (F.softmax,), distinctive=True)
_op("softmax", "input dim=None dtype=None", (torch.softmax,), "softmax", distinctive=True)
_op("linear", "input weight bias=None", (F.linear, torch._C._nn.linear, aten.linear.default))
_op("matmul", "input other", (operator.matmul, torch.matmul, torch.mm, aten.mm.default, aten.matmul.default),
    "matmul mm")  # fmt: skip
_op("addmm", "input mat1 mat2 beta=1 alpha=1", (torch.addmm, aten.addmm.default), "addmm")
_op("transpose", "input dim0 dim1", (torch.transpose, torch.swapaxes, aten.transpose.int), "transpose swapaxes",
    alias=True)  # fmt: skip
_op("t", "input", (torch.t, aten.t.default), "t", alias=True)
_op("permute", "input *dims", (torch.permute, aten.permute.default), "permute", alias=True)
_op("cast", "input dtype", (), alias=True)
_op("to", "input", (aten._to_copy.default,), "to type type_as float half bfloat16 double", alias=True)
_op("contiguous", "input memory_format=None", (aten.contiguous.default,), "contiguous", alias=True)
_op("clone", "input memory_format=None", (torch.clone, aten.clone.default), "clone")
_op("detach", "input", (torch.detach, aten.detach.default), "detach", alias=True)
_op("reshape", "input *shape", (torch.reshape, aten.view.default, aten.reshape.default, aten._unsafe_view.default),
    "view reshape", alias=True)  # fmt: skip
_op("flatten", "input start_dim=0 end_dim=-1", (torch.flatten,), "flatten", alias=True)
_op("expand", "input *size", (aten.expand.default,), "expand", alias=True)
_op("unsqueeze", "input dim", (torch.unsqueeze, aten.unsqueeze.default), "unsqueeze", alias=True)
_op("squeeze", "input dim=None", (torch.squeeze, aten.squeeze.dim), "squeeze", alias=True)
_op("chunk", "input chunks dim=0", (torch.chunk,), "chunk", alias=True)
_op("split", "input size dim=0", (torch.split, torch.functional.split, aten.split.Tensor), "split", alias=True)
_op("getitem", "input index", (operator.getitem,), alias=True)
_op("narrow", "input dim start length", (torch.narrow,), "narrow", alias=True)
_op("part", "input dim index of", (), alias=True)
_op("dropout", "input p=0.5 training=True inplace=False", (F.dropout,), alias=True)  # itself, where inactive
_op("dropout", "input p train", (torch.dropout,), alias=True)
_op("rms_norm", "input normalized_shape weight=None eps=None", (F.rms_norm, torch.rms_norm), distinctive=True)
_op("layer_norm", "input normalized_shape weight=None bias=None eps=1e-5", (F.layer_norm,), distinctive=True)
_op("alias", "input", (aten.alias.default,), alias=True)

READS_METADATA_ONLY = {"size", "dim", "numel", "stride", "is_floating_point", "element_size", "ndimension"}
"""Methods whose result does not depend on a tensor's contents."""


def spec_of(node: fx.Node) -> OpSpec | None:
    """The canonical op that this node spells, before any rule of the view; None for what the table does not know."""
    if node.op == "call_function":
        try:
            return FUNCTIONS.get(node.target)
        except TypeError:  # an unhashable callable
            return None
    if node.op == "call_method":
        return METHODS.get(str(node.target))
    return None


def is_transpose_attribute(node: fx.Node) -> bool:
    """``w.T`` and ``w.mT``; what they mean beyond two dimensions is the reader's to check."""
    return node.op == "call_function" and node.target is getattr and node.args[1] in {"T", "mT"}


def bind(spec: OpSpec, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Canonical arguments by name; None where the call does not fit the row (then the node stays opaque)."""
    bound: dict[str, Any] = {}
    names = [name for name, _ in spec.params]
    if spec.variadic is not None:
        fixed = len(names) - 1
        rest = args[fixed:]
        if rest:
            sizes = rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
            if any(isinstance(size, torch.dtype) for size in sizes):
                return None  # x.view(dtype) reads the same bits as other numbers
            args = (*args[:fixed], tuple(sizes))
    if len(args) > len(names):
        return None
    bound.update(zip(names, args, strict=False))
    for key, value in kwargs.items():
        name = _RENAMED.get(key, key)
        if name not in names or name in bound:
            return None
        bound[name] = value
    out: dict[str, Any] = {}
    for name, default in spec.params:
        if name not in bound:
            if default is REQUIRED:
                return None
            continue
        value = bound[name]
        if isinstance(value, list):
            value = tuple(value)
        if default is not REQUIRED and (value is None or (type(value) is type(default) and value == default)):
            continue
        out[name] = value
    return out


def function_name(target: Any) -> str:
    """A short, readable name for a call target that the table does not know."""
    name = getattr(target, "__name__", None) or str(target)
    return str(name).removeprefix("torch.ops.")


Rule = Callable[..., Any]
