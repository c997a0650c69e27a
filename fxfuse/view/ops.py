"""Spellings: which function, method or overload is which canonical op, and what its arguments are called.

One row a canonical op. A row's signature is ``name`` or ``name=default``; ``*name`` collects sizes given one by one.
An argument that is omitted, None or equal to its default is one thing, and is left out of the canonical form.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxfuse.compat import grouped_products

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class OpSpec:
    """A canonical op: its argument names with defaults, and what may be assumed of it."""

    name: str
    params: tuple[tuple[str, Any], ...]
    variadic: str | None = None
    commutative: bool = False
    alias: bool = False  # the result may share storage with ``input``
    distinctive: bool = False  # rare enough in real graphs to start a search from

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.params)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The names in the order of the op's first row, in which every row's arguments are kept."""
        first = SPECS[self.name]
        return self.names if first is self or set(self.names) - set(first.names) else first.names

    @cached_property
    def required(self) -> int:
        """How many arguments have no default; they come first."""
        return sum(default is REQUIRED for _, default in self.params)

    @cached_property
    def has_dim(self) -> bool:
        """Whether one of the arguments is a dimension called ``dim``."""
        return "dim" in self.names

    @cached_property
    def by_position(self) -> dict[int, tuple[tuple[str, Any, Any], ...] | None]:
        """For each number of arguments given by position alone, where each canonical argument is, and its default."""
        return {given: _plan(self, given, ()) for given in range(len(self.names) + 1)}

    @cached_property
    def defaults(self) -> dict[str, Any]:
        return {name: default for name, default in self.params if default is not REQUIRED}


REQUIRED = object()
_RENAMED = {
    "axis": "dim", "keepdims": "keepdim", "self": "input", "x1": "input", "x2": "other", "mat2": "other",
    "split_size": "size", "split_size_or_sections": "size", "split_sizes": "size", "sizes": "shape",
    "indices_or_sections": "sections", "unbiased": "correction",
}  # fmt: skip
_WITHOUT_MEANING = {"_stacklevel"}  # where a warning would point to
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
    SPECS.setdefault(name, spec)
    for function in functions:
        FUNCTIONS[function] = spec
    for method in methods.split():
        METHODS[method] = spec


# --- arithmetic -----------------------------------------------------------------------------------------------------

_op("add", "input other alpha=1", (operator.add, torch.add, aten.add.Tensor, aten.add.Scalar), "add", commutative=True)
_op("sub", "input other alpha=1", (operator.sub, torch.sub, torch.subtract, aten.sub.Tensor), "sub subtract")
_op("rsub", "input other alpha=1", (torch.rsub,))
_op("mul", "input other", (operator.mul, torch.mul, torch.multiply, aten.mul.Tensor, aten.mul.Scalar),
    "mul multiply", commutative=True)  # fmt: skip
_op("div", "input other rounding_mode=None",
    (operator.truediv, torch.div, torch.divide, torch.true_divide, aten.div.Tensor, aten.div.Scalar),
    "div divide true_divide")  # fmt: skip
_op("floor_divide", "input other", (operator.floordiv, torch.floor_divide), "floor_divide")
_op("remainder", "input other", (operator.mod, torch.remainder), "remainder")
_op("fmod", "input other", (torch.fmod,), "fmod")
_op("neg", "input", (operator.neg, torch.neg, torch.negative, aten.neg.default), "neg negative", distinctive=True)
_op("abs", "input", (operator.abs, torch.abs, torch.absolute), "abs absolute")
_op("sign", "input", (torch.sign,), "sign")
_op("pow", "input exponent", (operator.pow, torch.pow, aten.pow.Tensor_Scalar), "pow")
_op("square", "input", (torch.square,), "square")
_op("sqrt", "input", (torch.sqrt, aten.sqrt.default), "sqrt", distinctive=True)
_op("rsqrt", "input", (torch.rsqrt, aten.rsqrt.default), "rsqrt", distinctive=True)
_op("reciprocal", "input", (torch.reciprocal, aten.reciprocal.default), "reciprocal")
_op("exp", "input", (torch.exp, aten.exp.default), "exp", distinctive=True)
_op("exp2", "input", (torch.exp2, torch.special.exp2), "exp2", distinctive=True)
_op("expm1", "input", (torch.expm1, torch.special.expm1), "expm1", distinctive=True)
_op("log", "input", (torch.log,), "log", distinctive=True)
_op("log1p", "input", (torch.log1p, torch.special.log1p), "log1p", distinctive=True)
_op("log2", "input", (torch.log2,), "log2", distinctive=True)
_op("erf", "input", (torch.erf, torch.special.erf), "erf", distinctive=True)
_op("sin", "input", (torch.sin,), "sin")
_op("cos", "input", (torch.cos,), "cos")
_op("floor", "input", (torch.floor,), "floor")
_op("ceil", "input", (torch.ceil,), "ceil")
_op("round", "input decimals=0", (torch.round,), "round")
_op("clamp", "input min=None max=None", (torch.clamp, torch.clip), "clamp clip")
_op("clamp", "input min", (torch.clamp_min,), "clamp_min")
_op("clamp", "input max", (torch.clamp_max,), "clamp_max")
_op("maximum", "input other", (torch.maximum,), "maximum", commutative=True)
_op("minimum", "input other", (torch.minimum,), "minimum", commutative=True)
_op("lerp", "input end weight", (torch.lerp,), "lerp")
_op("addcmul", "input tensor1 tensor2 value=1", (torch.addcmul,), "addcmul")

# --- comparisons, masks ---------------------------------------------------------------------------------------------

_op("eq", "input other", (operator.eq, torch.eq), "eq", commutative=True)
_op("ne", "input other", (operator.ne, torch.ne, torch.not_equal), "ne not_equal", commutative=True)
_op("lt", "input other", (operator.lt, torch.lt, torch.less), "lt less")
_op("le", "input other", (operator.le, torch.le, torch.less_equal), "le less_equal")
_op("gt", "input other", (operator.gt, torch.gt, torch.greater), "gt greater")
_op("ge", "input other", (operator.ge, torch.ge, torch.greater_equal), "ge greater_equal")
_op("bitwise_and", "input other", (operator.and_, torch.bitwise_and), "bitwise_and __and__", commutative=True)
_op("bitwise_or", "input other", (operator.or_, torch.bitwise_or), "bitwise_or __or__", commutative=True)
_op("bitwise_xor", "input other", (operator.xor, torch.bitwise_xor), "bitwise_xor __xor__", commutative=True)
_op("bitwise_not", "input", (operator.invert, torch.bitwise_not), "bitwise_not __invert__")
_op("logical_and", "input other", (torch.logical_and,), "logical_and", commutative=True)
_op("logical_or", "input other", (torch.logical_or,), "logical_or", commutative=True)
_op("logical_not", "input", (torch.logical_not,), "logical_not")
_op("isnan", "input", (torch.isnan,), "isnan")
_op("isinf", "input", (torch.isinf,), "isinf")
_op("where", "condition input other", (torch.where,))
_op("where", "input condition other", (), "where")
_op("masked_fill", "input mask value", (torch.masked_fill,), "masked_fill")
_op("tril", "input diagonal=0", (torch.tril,), "tril")
_op("triu", "input diagonal=0", (torch.triu,), "triu")

# --- reductions and scans -------------------------------------------------------------------------------------------

_op("mean", "input dim=None keepdim=False dtype=None", (torch.mean, aten.mean.dim, aten.mean.default), "mean")
_op("sum", "input dim=None keepdim=False dtype=None", (torch.sum, aten.sum.dim_IntList, aten.sum.default), "sum")
_op("prod", "input dim=None keepdim=False dtype=None", (torch.prod,), "prod")
_op("amax", "input dim=() keepdim=False", (torch.amax,), "amax")
_op("amin", "input dim=() keepdim=False", (torch.amin,), "amin")
_op("max", "input dim=None keepdim=False", (torch.max,), "max")
_op("min", "input dim=None keepdim=False", (torch.min,), "min")
_op("argmax", "input dim=None keepdim=False", (torch.argmax,), "argmax")
_op("argmin", "input dim=None keepdim=False", (torch.argmin,), "argmin")
_op("any", "input dim=None keepdim=False", (torch.any,), "any")
_op("all", "input dim=None keepdim=False", (torch.all,), "all")
_op("var", "input dim=None correction=1 keepdim=False", (torch.var,), "var", distinctive=True)
_op("std", "input dim=None correction=1 keepdim=False", (torch.std,), "std", distinctive=True)
_op("var_mean", "input dim=None correction=1 keepdim=False", (torch.var_mean,), distinctive=True)
_op("norm", "input p='fro' dim=None keepdim=False", (torch.norm, torch.functional.norm), "norm", distinctive=True)
_op("vector_norm", "input ord=2 dim=None keepdim=False dtype=None", (torch.linalg.vector_norm,), distinctive=True)
_op("logsumexp", "input dim keepdim=False", (torch.logsumexp, torch.special.logsumexp), "logsumexp", distinctive=True)
_op("cumsum", "input dim dtype=None", (torch.cumsum,), "cumsum")
_op("diff", "input n=1 dim=-1 prepend=None append=None", (torch.diff,), "diff")
_op("topk", "input k dim=-1 largest=True sorted=True", (torch.topk,), "topk")
_op("sort", "input dim=-1 descending=False stable=False", (torch.sort,), "sort")
_op("argsort", "input dim=-1 descending=False stable=False", (torch.argsort,), "argsort")
_op("histc", "input bins=100 min=0 max=0", (torch.histc,), "histc")

# --- activations ----------------------------------------------------------------------------------------------------

_op("sigmoid", "input", (torch.sigmoid, F.sigmoid, torch.special.expit, aten.sigmoid.default), "sigmoid",
    distinctive=True)  # fmt: skip
_op("tanh", "input", (torch.tanh, F.tanh, aten.tanh.default), "tanh", distinctive=True)
_op("silu", "input inplace=False", (F.silu, torch._C._nn.silu, aten.silu.default), distinctive=True)
_op("gelu", "input approximate='none'", (F.gelu, torch._C._nn.gelu, aten.gelu.default), distinctive=True)
_op("relu", "input inplace=False", (F.relu, torch.relu, aten.relu.default), "relu", distinctive=True)
_op("relu6", "input inplace=False", (F.relu6,), distinctive=True)
_op("leaky_relu", "input negative_slope=0.01 inplace=False", (F.leaky_relu, torch._C._nn.leaky_relu), distinctive=True)
_op("elu", "input alpha=1.0 inplace=False", (F.elu, torch._C._nn.elu), distinctive=True)
_op("celu", "input alpha=1.0 inplace=False", (F.celu,), distinctive=True)
_op("selu", "input inplace=False", (F.selu,), distinctive=True)
_op("softplus", "input beta=1 threshold=20", (F.softplus, torch._C._nn.softplus), distinctive=True)
_op("softsign", "input", (F.softsign,), distinctive=True)
_op("logsigmoid", "input", (F.logsigmoid, torch._C._nn.log_sigmoid), distinctive=True)
_op("mish", "input inplace=False", (F.mish,), distinctive=True)
_op("hardswish", "input inplace=False", (F.hardswish,), distinctive=True)
_op("hardsigmoid", "input inplace=False", (F.hardsigmoid,), distinctive=True)
_op("hardtanh", "input min_val=-1.0 max_val=1.0 inplace=False", (F.hardtanh,), distinctive=True)
_op("glu", "input dim=-1", (F.glu, torch._C._nn.glu), distinctive=True)
_op("softmax", "input dim=None _stacklevel=3 dtype=None", (F.softmax,), distinctive=True)
_op("softmax", "input dim=None dtype=None", (torch.softmax, torch.special.softmax), "softmax", distinctive=True)
_op("log_softmax", "input dim=None _stacklevel=3 dtype=None", (F.log_softmax,), distinctive=True)
_op("log_softmax", "input dim=None dtype=None", (torch.log_softmax, torch.special.log_softmax), "log_softmax",
    distinctive=True)  # fmt: skip
_op("dropout", "input p=0.5 training=True inplace=False", (F.dropout,), alias=True)  # itself, where inactive
_op("dropout", "input p train", (torch.dropout,), alias=True)

# --- products -------------------------------------------------------------------------------------------------------

_op("linear", "input weight bias=None", (F.linear, torch._C._nn.linear, aten.linear.default))
_op("matmul", "input other", (operator.matmul, torch.matmul, torch.mm, torch.bmm, aten.mm.default, aten.matmul.default),
    "matmul mm bmm __matmul__")  # fmt: skip
_op("addmm", "input mat1 mat2 beta=1 alpha=1", (torch.addmm, aten.addmm.default), "addmm")
_op("baddbmm", "input batch1 batch2 beta=1 alpha=1", (torch.baddbmm,), "baddbmm", distinctive=True)
_op("grouped_mm", "input mat2 offs=None bias=None out_dtype=None", grouped_products(), distinctive=True)
_op("einsum", "equation *operands", (torch.einsum, torch.functional.einsum), alias=True)  # of one tensor: a view
_op("outer", "input vec2", (torch.outer, torch.ger), "outer ger")
_op("scaled_dot_product_attention",
    "query key value attn_mask=None dropout_p=0.0 is_causal=False scale=None enable_gqa=False",
    (F.scaled_dot_product_attention, torch._C._nn.scaled_dot_product_attention), distinctive=True)  # fmt: skip
_op("conv1d", "input weight bias=None stride=1 padding=0 dilation=1 groups=1", (F.conv1d, torch.conv1d),
    distinctive=True)  # fmt: skip
_op("conv2d", "input weight bias=None stride=1 padding=0 dilation=1 groups=1", (F.conv2d, torch.conv2d),
    distinctive=True)  # fmt: skip
_op("embedding", "input weight padding_idx=None max_norm=None norm_type=2.0 scale_grad_by_freq=False sparse=False",
    (F.embedding,), distinctive=True)  # fmt: skip

# --- norms ----------------------------------------------------------------------------------------------------------

_op("rms_norm", "input normalized_shape weight=None eps=None", (F.rms_norm, torch.rms_norm), distinctive=True)
_op("layer_norm", "input normalized_shape weight=None bias=None eps=1e-5", (F.layer_norm,), distinctive=True)
_op("layer_norm", "input normalized_shape weight=None bias=None eps=1e-5 cudnn_enable=True", (torch.layer_norm,),
    distinctive=True)  # fmt: skip
_op("normalize", "input p=2.0 dim=1 eps=1e-12", (F.normalize,), distinctive=True)
_op("group_norm", "input num_groups weight=None bias=None eps=1e-5", (F.group_norm,), distinctive=True)

# --- losses ---------------------------------------------------------------------------------------------------------

_op("cross_entropy",
    "input target weight=None size_average=None ignore_index=-100 reduce=None reduction='mean' label_smoothing=0.0",
    (F.cross_entropy,), distinctive=True)  # fmt: skip

# --- views and copies -----------------------------------------------------------------------------------------------

_op("transpose", "input dim0 dim1", (torch.transpose, torch.swapaxes, torch.swapdims, aten.transpose.int),
    "transpose swapaxes swapdims", alias=True)  # fmt: skip
_op("t", "input", (torch.t, aten.t.default), "t", alias=True)
_op("permute", "input *dims", (torch.permute, aten.permute.default), "permute", alias=True)
_op("movedim", "input source destination", (torch.movedim, torch.moveaxis), "movedim moveaxis", alias=True)
_op("cast", "input dtype", (), alias=True)
_op("to", "input", (aten._to_copy.default,),
    "to type type_as float half bfloat16 double int long short bool", alias=True)  # fmt: skip
_op("contiguous", "input memory_format=None", (aten.contiguous.default,), "contiguous", alias=True)
_op("clone", "input memory_format=None", (torch.clone, aten.clone.default), "clone")
_op("detach", "input", (torch.detach, aten.detach.default), "detach", alias=True)
_op("alias", "input", (aten.alias.default,), alias=True)
_op("reshape", "input *shape", (torch.reshape, aten.view.default, aten.reshape.default, aten._unsafe_view.default),
    "view reshape", alias=True)  # fmt: skip
_op("reshape_as", "input other", (), "view_as reshape_as", alias=True)
_op("flatten", "input start_dim=0 end_dim=-1", (torch.flatten,), "flatten", alias=True)
_op("unflatten", "input dim shape", (torch.unflatten,), "unflatten", alias=True)
_op("split_last", "input size", (), alias=True)  # [..., n * size] as [..., n, size]
_op("merge_last", "input", (), alias=True)  # [..., n, m] as [..., n * m]
_op("rows", "input", (), alias=True)  # [..., n] as [all rows, n]
_op("expand", "input *size", (aten.expand.default,), "expand", alias=True)
_op("expand", "input size", (torch.broadcast_to,), "broadcast_to", alias=True)
_op("expand_as", "input other", (), "expand_as", alias=True)
_op("unsqueeze", "input dim", (torch.unsqueeze, aten.unsqueeze.default), "unsqueeze", alias=True)
_op("squeeze", "input dim=None", (torch.squeeze, aten.squeeze.dim), "squeeze", alias=True)
_op("repeat", "input *repeats", (), "repeat")
_op("repeat_interleave", "input repeats dim=None output_size=None", (torch.repeat_interleave,), "repeat_interleave")
_op("flip", "input *dims", (torch.flip,), "flip")
_op("roll", "input shifts dims=()", (torch.roll,), "roll")
_op("view_as_complex", "input", (torch.view_as_complex,), alias=True, distinctive=True)
_op("view_as_real", "input", (torch.view_as_real,), alias=True, distinctive=True)
_op("polar", "input angle", (torch.polar,))

# --- splitting and joining ------------------------------------------------------------------------------------------

_op("chunk", "input chunks dim=0", (torch.chunk,), "chunk", alias=True)
_op("split", "input size dim=0", (torch.split, torch.functional.split, aten.split.Tensor), "split split_with_sizes",
    alias=True)  # fmt: skip
_op("tensor_split", "input sections dim=0", (torch.tensor_split,), "tensor_split", alias=True)
_op("unbind", "input dim=0", (torch.unbind,), "unbind", alias=True)
_op("getitem", "input index", (operator.getitem,), alias=True)
_op("narrow", "input dim start length", (torch.narrow,), "narrow", alias=True)
_op("select", "input dim index", (torch.select,), "select", alias=True)
_op("slice", "input dim start=0 stop=None step=1", (), alias=True)
_op("part", "input dim index of", (), alias=True)
_op("cat", "tensors dim=0", (torch.cat, torch.concat, torch.concatenate))
_op("stack", "tensors dim=0", (torch.stack,))
_op("hstack", "tensors", (torch.hstack,))
_op("pad", "input pad mode='constant' value=None", (F.pad, torch._C._nn.pad))
_op("gather", "input dim index sparse_grad=False", (torch.gather,), "gather")
_op("take_along_dim", "input indices dim=None", (torch.take_along_dim,), "take_along_dim")
_op("index_select", "input dim index", (torch.index_select,), "index_select")
_op("one_hot", "input num_classes=-1", (F.one_hot, torch._C._nn.one_hot))

# --- constants ------------------------------------------------------------------------------------------------------

_op("arange", "start end=None step=1 dtype=None layout=None device=None pin_memory=False requires_grad=False",
    (torch.arange,))  # fmt: skip
_op("zeros", "*size dtype=None layout=None device=None requires_grad=False", (torch.zeros,))
_op("ones", "*size dtype=None layout=None device=None requires_grad=False", (torch.ones,))
_op("full", "size fill_value dtype=None layout=None device=None requires_grad=False", (torch.full,))
for _name in ("zeros_like", "ones_like"):
    _op(_name, "input dtype=None layout=None device=None requires_grad=False memory_format=None",
        (getattr(torch, _name),))  # fmt: skip
_op("full_like", "input fill_value dtype=None layout=None device=None requires_grad=False memory_format=None",
    (torch.full_like,))  # fmt: skip
for _name in ("new_zeros", "new_ones"):
    _op(_name, "input *size dtype=None layout=None device=None requires_grad=False", (), _name)
_op("new_full", "input size fill_value dtype=None layout=None device=None requires_grad=False", (), "new_full")

MULTIPLE = frozenset({"chunk", "split", "tensor_split", "unbind", "max", "min", "topk", "sort", "var_mean"})
"""Ops that may give a tuple of tensors: an integer index picks one of them."""

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


def is_transpose_attribute(node: fx.Node, *names: str) -> bool:
    """``w.T`` and ``w.mT``; what they mean beyond two dimensions is the reader's to check."""
    return node.op == "call_function" and node.target is getattr and node.args[1] in (names or ("T", "mT"))


def bind(spec: OpSpec, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Canonical arguments by name; None where the call does not fit the row (then the node stays opaque)."""
    if spec.variadic is not None:
        gathered = _gather(spec, args)
        if gathered is None:
            return None
        args = gathered
    plan = _plan(spec, len(args), tuple(kwargs)) if kwargs else spec.by_position.get(len(args))
    if plan is None:
        return None
    bound: dict[str, Any] = {}
    for name, source, default in plan:
        value = args[source] if type(source) is int else kwargs[source]
        if type(value) is not fx.Node:  # which most are, and is no default
            if isinstance(value, list):
                value = tuple(value)
            if default is not REQUIRED and (value is None or (_same_kind(value, default) and value == default)):
                continue
        bound[name] = value
    return bound


@functools.cache
def _plan(spec: OpSpec, given: int, keys: tuple[str, ...]) -> tuple[tuple[str, Any, Any], ...] | None:
    """Where a call of this form has each canonical argument, and its default; None where the row does not take it."""
    names = spec.names
    if given > len(names):
        return None
    sources: dict[str, int | str] = {name: place for place, name in enumerate(names[:given])}
    for key in keys:
        name = key if key in names else _RENAMED.get(key, key)
        if name not in names or name in sources:
            return None
        sources[name] = key
    if any(name not in sources for name in names[: spec.required]):
        return None
    defaults = spec.defaults
    kept = (name for name in spec.order if name in sources and name not in _WITHOUT_MEANING)
    return tuple((name, sources[name], defaults.get(name, REQUIRED)) for name in kept)


def _same_kind(a: Any, b: Any) -> bool:
    return type(a) is type(b) or (type(a) in _NUMBERS and type(b) in _NUMBERS)


_NUMBERS = (int, float)


def _gather(spec: OpSpec, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Sizes given one by one as the tuple that they could also be given as."""
    fixed = spec.names.index(str(spec.variadic))
    rest = args[fixed:]
    if not rest:
        return args
    sizes = rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
    if torch.dtype in map(type, sizes):
        return None  # x.view(dtype) reads the same bits as other numbers
    return (*args[:fixed], tuple(sizes))


def function_name(target: Any) -> str:
    """A short, readable name for a call target that the table does not know."""
    name = getattr(target, "__name__", None) or str(target)
    return str(name).removeprefix("torch.ops.")
