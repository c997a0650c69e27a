"""Whole norms as formulas, and the formula of LayerNorm as its op.

RMSNorm is spelled out, for its variants differ in where they round and scale. Of LayerNorm the part that all variants
share is one op, ``standardize``: the scale, the shift and the casts around it are ops of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from fxfuse.safeguards import safeguard
from fxfuse.view.rules.conditions import is_parameter, is_same, is_wide
from fxfuse.view.rules.registry import rule
from fxfuse.view.values import DtypeOf, SymbolicMeta, Value

if TYPE_CHECKING:
    from fxfuse.view.view import View

ONE_DIMENSION = safeguard("one_dimension", "a norm over several dimensions taken for one over the last")
_LOW = (torch.bfloat16, torch.float16)


class _Formula:
    """A value spelled out: its parts in fp32, its result in the dtype of x."""

    def __init__(self, view: View, value: Value, x: Value) -> None:
        self.value, self.x, self.view = value, x, view
        self.parts: list[Value] = []
        self.cast = view.symbolic or x.dtype in _LOW

    def part(self, op: str, **args: Any) -> Value:
        shape = self.x.shape if op in {"cast", "mul", "add", "standardize"} else None
        dtype = torch.float32 if self.cast else self.x.dtype
        made = self.value.part(op, args, SymbolicMeta(dtype, shape, self.x.device))
        self.parts.append(made)
        return made

    def wide(self) -> Value:
        return self.part("cast", input=self.x, dtype=torch.float32) if self.cast else self.x

    def result(self, last: Value, step: str) -> Value:
        if self.cast:
            dtype = DtypeOf(self.x) if self.view.symbolic else self.x.dtype
            out = self.value.become("cast", {"input": last, "dtype": dtype}, step)
        else:
            self.parts.remove(last)
            out = self.value.become(last.op, last.args, step)
        for made in self.parts:
            made.owner = out
        return out


def _is_over_last(view: View, shape: Any) -> bool:
    """Whether ``normalized_shape`` is one dimension. A pattern writes it as the shape of a weight."""
    if isinstance(shape, fx.Node) and view.symbolic:
        return shape.target is getattr and is_parameter(view.operand(shape.args[0])) and shape.args[1] == "shape"
    return isinstance(shape, tuple) and ONE_DIMENSION(len(shape) == 1)


@rule("rms_norm", "mul")
def rms_norm_function(view: View, value: Value) -> Value | None:
    """``F.rms_norm`` computes in fp32, scales, then casts once: the *late* order.

    Without eps it takes that of fp32, whatever the input's dtype (checked on CPU; elsewhere such a norm of a lower
    precision stays opaque).
    """
    x, weight, eps = view.operand(value.args["input"]), value.args.get("weight"), value.args.get("eps")
    if not isinstance(x, Value) or not _is_over_last(view, value.args["normalized_shape"]):
        return None
    if eps is None and (x.dtype is torch.float32 or (x.device is not None and x.device.type == "cpu")):
        eps = torch.finfo(torch.float32).eps
    if eps is None or not (view.symbolic or (x.dtype in (torch.float32, *_LOW) and x.shape is not None)):
        return None
    formula = _Formula(view, value, x)
    part, wide = formula.part, formula.wide()
    mean = part("mean", input=part("square", input=wide), dim=-1, keepdim=True)
    factor = part("rsqrt", input=part("add", input=mean, other=eps))
    last = part("mul", input=wide, other=factor)
    if weight is not None:
        last = part("mul", input=last, other=weight)
    return formula.result(last, "rms_norm as its formula")


@rule("layer_norm", "standardize")
def layer_norm_function(view: View, value: Value) -> Value | None:
    """``F.layer_norm`` computes in fp32, scales and shifts, then casts once."""
    x = view.operand(value.args["input"])
    if not isinstance(x, Value) or not _is_over_last(view, value.args["normalized_shape"]):
        return None
    if not (view.symbolic or (x.dtype in (torch.float32, torch.float64, *_LOW) and x.shape is not None)):
        return None
    formula = _Formula(view, value, x)
    last = formula.part("standardize", input=formula.wide(), eps=value.args.get("eps", 1e-5))
    if value.args.get("weight") is not None:
        last = formula.part("mul", input=last, other=value.args["weight"])
    if value.args.get("bias") is not None:
        last = formula.part("add", input=last, other=value.args["bias"])
    return formula.result(last, "layer_norm as its formula")


@rule("mul", "standardize")
def layer_norm_by_hand(view: View, value: Value) -> Value | None:
    """``(x - mean) * rsqrt(var + eps)``, with the variance by hand or by ``var``; last place of fp32 may differ."""
    for name, other in (("input", "other"), ("other", "input")):
        factor, centred = view.operand(value.args[name]), view.operand(value.args[other])
        if not (isinstance(factor, Value) and factor.op == "rsqrt" and isinstance(centred, Value)):
            continue
        x = _centred(view, centred)
        total = view.operand(factor.args["input"])
        if x is None or not isinstance(total, Value) or total.op != "add":
            continue
        made = _standardized(view, value, x, centred, factor, total)
        if made is not None:
            return made
    return None


def _standardized(view: View, value: Value, x: Value, centred: Value, factor: Value, total: Value) -> Value | None:
    for name, other in (("input", "other"), ("other", "input")):
        variance, eps = view.operand(total.args[name]), total.args[other]
        inside = _variance_nodes(view, variance, x)
        if inside is None or not (type(eps) is float or isinstance(eps, fx.Node)) or not is_wide(view, value):
            continue
        mean = view.operand(centred.args["other"])
        absorbed = dict.fromkeys((*mean.nodes, *centred.nodes, *inside, *total.nodes, *factor.nodes))
        absorbed.update(dict.fromkeys(value.absorbed))
        made = value.become("standardize", {"input": x, "eps": eps}, "layer norm by hand")
        made.absorbed = tuple(absorbed)
        return made
    return None


def _centred(view: View, value: Value) -> Value | None:
    """``x`` of ``x - x.mean(-1, keepdim=True)``."""
    if value.op != "sub" or "alpha" in value.args:
        return None
    x, mean = view.operand(value.args["input"]), view.operand(value.args["other"])
    if not isinstance(x, Value) or not isinstance(mean, Value) or mean.op != "mean" or not _over_last(view, mean):
        return None
    return x if is_same(view.operand(mean.args["input"]), x) else None


def _over_last(view: View, value: Value) -> bool:
    return view.dimension(value) == -1 and value.args.get("keepdim") is True and "dtype" not in value.args


def _variance_nodes(view: View, value: Any, x: Value) -> tuple[fx.Node, ...] | None:
    """The nodes of x's variance over its last dimension, or None where the value is not that."""
    if not isinstance(value, Value) or value.op not in ("var", "mean") or not _over_last(view, value):
        return None
    inner = view.operand(value.args["input"])
    if value.op == "var":
        return value.nodes if value.args.get("correction") == 0 and is_same(inner, x) else None
    if not isinstance(inner, Value) or inner.op != "square":
        return None
    centred = view.operand(inner.args["input"])
    if not isinstance(centred, Value) or not is_same(_centred(view, centred), x):
        return None
    mean = view.operand(centred.args["other"])
    return (*mean.nodes, *centred.nodes, *inner.nodes, *value.nodes)
