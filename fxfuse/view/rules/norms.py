"""Norms spelled out: their variants differ in where they round, scale and shift, so the formula is the common form."""

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
UNCORRECTED = safeguard("uncorrected", "a variance over n - 1 taken for the mean square of the differences")
_LOW = (torch.bfloat16, torch.float16)


class _Formula:
    """A value spelled out: its parts in fp32, its result in the dtype of x."""

    def __init__(self, view: View, value: Value, x: Value) -> None:
        self.value, self.x, self.view = value, x, view
        self.parts: list[Value] = []
        self.cast = view.symbolic or x.dtype in _LOW

    def part(self, op: str, **args: Any) -> Value:
        shape = self.x.shape if op in {"cast", "mul", "add", "sub"} else None
        dtype = torch.float32 if self.cast else self.x.dtype
        made = self.value.part(op, args, SymbolicMeta(dtype, shape, self.x.device))
        self.parts.append(made)
        return made

    def wide(self) -> Value:
        return self.part("cast", input=self.x, dtype=torch.float32) if self.cast else self.x

    def over_root_mean_square(self, x: Value, eps: Any) -> Value:
        mean = self.part("mean", input=self.part("square", input=x), dim=-1, keepdim=True)
        factor = self.part("rsqrt", input=self.part("add", input=mean, other=eps))
        return self.part("mul", input=x, other=factor)

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
    last = formula.over_root_mean_square(formula.wide(), eps)
    if weight is not None:
        last = formula.part("mul", input=last, other=weight)
    return formula.result(last, "rms_norm as its formula")


@rule("layer_norm", "mul")
def layer_norm_function(view: View, value: Value) -> Value | None:
    """``F.layer_norm`` computes in fp32, scales and shifts, then casts once."""
    x = view.operand(value.args["input"])
    if not isinstance(x, Value) or not _is_over_last(view, value.args["normalized_shape"]):
        return None
    if not (view.symbolic or (x.dtype in (torch.float32, torch.float64, *_LOW) and x.shape is not None)):
        return None
    formula = _Formula(view, value, x)
    wide = formula.wide()
    centred = formula.part("sub", input=wide, other=formula.part("mean", input=wide, dim=-1, keepdim=True))
    last = formula.over_root_mean_square(centred, value.args.get("eps", 1e-5))
    if value.args.get("weight") is not None:
        last = formula.part("mul", input=last, other=value.args["weight"])
    if value.args.get("bias") is not None:
        last = formula.part("add", input=last, other=value.args["bias"])
    return formula.result(last, "layer_norm as its formula")


@rule("mul", "mul", reads="rsqrt")
def layer_norm_by_hand(view: View, value: Value) -> Value | None:
    """``(x - mean) * rsqrt(var + eps)``, where the variance comes from ``var`` or from another ``x - mean``.

    Last place of fp32 may differ.
    """
    for name, other in (("input", "other"), ("other", "input")):
        factor, centred = view.operand(value.args[name]), view.operand(value.args[other])
        if not (isinstance(factor, Value) and factor.op == "rsqrt" and isinstance(centred, Value)):
            continue
        total = view.operand(factor.args["input"])
        if not isinstance(total, Value) or total.op != "add" or "alpha" in total.args:
            continue
        x = _centred(view, centred)
        made = None if x is None else _with_own_variance(view, value, x, centred, factor, total)
        if made is not None:
            return made
    return None


def _with_own_variance(view: View, value: Value, x: Value, centred: Value, factor: Value, total: Value) -> Value | None:
    """The product with the variance computed of ``centred`` itself."""
    for name, other in (("input", "other"), ("other", "input")):
        inside = _variance_nodes(view, view.operand(total.args[name]), x, centred)
        if inside is None or not is_wide(view, value):
            continue
        square = value.part("square", {"input": centred}, centred.meta)
        mean = value.part("mean", {"input": square, "dim": -1, "keepdim": True}, factor.meta)
        shifted = value.part("add", {"input": mean, "other": total.args[other]}, factor.meta)
        root = value.part("rsqrt", {"input": shifted}, factor.meta)
        absorbed = dict.fromkeys((*inside, *total.nodes, *factor.nodes))
        made = value.become("mul", {"input": centred, "other": root}, "layer norm by hand", tuple(absorbed))
        for part in (square, mean, shifted, root):
            part.owner = made
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


def _variance_nodes(view: View, value: Any, x: Value, centred: Value) -> tuple[fx.Node, ...] | None:
    """The nodes of x's variance over its last dimension where it is not computed of ``centred``, else None."""
    if not isinstance(value, Value) or value.op not in ("var", "mean") or not _over_last(view, value):
        return None
    inner = view.operand(value.args["input"])
    if value.op == "var":
        return value.nodes if UNCORRECTED(value.args.get("correction") == 0) and is_same(inner, x) else None
    if not isinstance(inner, Value) or inner.op != "square":
        return None
    again = view.operand(inner.args["input"])
    if not isinstance(again, Value) or again is centred or not is_same(_centred(view, again), x):
        return None
    mean, own = view.operand(again.args["other"]), view.operand(centred.args["other"])
    return (*(mean.nodes if mean is not own else ()), *again.nodes, *inner.nodes, *value.nodes)
