"""Implementations of `rms_norm_qkv`: plain PyTorch, one GEMM over stacked weights, and Triton."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fxfuse.kernels.common import TRITON
from fxfuse.kernels.cpu import (
    KEPT_PANELS,
    PACKED,
    PANELS,
    WIDE,
    kept_linear,
    linear_of_packed,
    low_linear,
    packed,
    wide_linear,
)  # fmt: skip
from fxfuse.kernels.norms import normed
from fxfuse.kernels.registry import kernel
from fxfuse.params import fold, panels, stack

PATTERN = "rms_norm_qkv"


@kernel(PATTERN, name="plain", backward="autograd", default=True)
def plain(x: Any, weight: Any, projections: Any, biases: Any, *, eps: Any, norm: str) -> Any:
    """The reference's operations in the reference's order."""
    h = normed(x, weight, eps, norm)
    return tuple(F.linear(h, w, b) for w, b in zip(projections, _each(biases, projections), strict=True))


@kernel(PATTERN, name="stacked", derive={"rows": stack("projections")}, backward="autograd", default=True)
def stacked(x: Any, weight: Any, rows: Any, projections: Any, *, eps: Any, norm: str) -> Any:
    """One GEMM over the stacked weights, whose result is cut."""
    return _cut(F.linear(normed(x, weight, eps, norm), rows), projections)


BIASED = {"rows": stack("projections"), "bias": stack("biases")}


@kernel(PATTERN, name="stacked_biased", derive=BIASED, backward="autograd", default=True)
def stacked_biased(x: Any, weight: Any, rows: Any, bias: Any, projections: Any, *, eps: Any, norm: str) -> Any:
    """The same with stacked biases."""
    return _cut(F.linear(normed(x, weight, eps, norm), rows, bias), projections)


def _cut(y: Any, projections: Any) -> tuple[Any, ...]:
    parts = y.split([w.shape[0] for w in projections], -1)
    return tuple(part.contiguous() for part in parts)


def _each(biases: Any, projections: Any) -> Any:
    return (None,) * len(projections) if biases is None else biases


@kernel(PATTERN, name="cpu_fp32_gemm", **WIDE)
def cpu_fp32_gemm(x: Any, weight: Any, projections: Any, biases: Any, *, eps: Any, norm: str) -> Any:
    """fp32 GEMMs from bf16 weights; less rounding than eager, no second copy of any weight."""
    h = normed(x, weight, eps, norm)
    return tuple(wide_linear(h, w, b) for w, b in zip(projections, _each(biases, projections), strict=True))


def cpu_panels(x: Any, weight: Any, projections: Any, biases: Any, *, eps: Any, norm: str) -> Any:
    """In fp32, from the weights as they are, panel by panel."""
    h = normed(x, weight, eps, norm)
    each = zip(projections, _each(biases, projections), strict=True)
    return tuple(low_linear(h, w, b).to(x.dtype) for w, b in each)


for _name, _requires in PANELS.items():
    kernel(PATTERN, name=_name, **_requires)(cpu_panels)


@kernel(PATTERN, derive={"rows": panels(stack("projections"))}, **KEPT_PANELS)
def cpu_kept_panels(x: Any, weight: Any, rows: Any, projections: Any, biases: Any, *, eps: Any, norm: str) -> Any:
    """One GEMM over kept panels of all weights, whose result is cut; `projections` are asked for their sizes only."""
    h = normed(x, weight, eps, norm)
    parts = _cut(kept_linear(h, rows, None, sum(w.shape[0] for w in projections)), projections)
    each = zip(parts, _each(biases, projections), strict=True)
    return tuple((part if b is None else part + b.float()).to(x.dtype) for part, b in each)


def cpu_packed(x: Any, weight: Any, rows: Any, projections: Any, biases: Any, *, eps: Any, norm: str) -> Any:
    """One GEMM over packed weights, whose result is cut; `projections` are asked for their sizes only."""
    h = normed(x, weight, eps, norm)
    parts = _cut(linear_of_packed(h, rows, None, sum(w.shape[0] for w in projections)), projections)
    each = zip(parts, _each(biases, projections), strict=True)
    return tuple((part if b is None else part + b.float()).to(x.dtype) for part, b in each)


for _name, _requires in PACKED.items():
    kernel(PATTERN, name=_name, derive={"rows": packed(stack("projections"))}, **_requires)(cpu_packed)


# the norm's scale in the weight, so that the norm itself scales nothing


def _unscaled(x: Any, eps: Any) -> Any:
    h = x.float()
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


@kernel(
    PATTERN, name="folded", derive={"rows": fold(stack("projections"), "weight")}, variants={"norm": {"early", "late"}}
)
def folded(x: Any, rows: Any, projections: Any, *, eps: Any) -> Any:
    """One GEMM over the stacked weights, into which the norm's scale was multiplied. By name only: not measured."""
    return _cut(F.linear(_unscaled(x, eps), rows), projections)


@kernel(
    PATTERN,
    name="folded_offset",
    derive={"rows": fold(stack("projections"), "weight", offset=True)},
    variants={"norm": {"offset"}},
)
def folded_offset(x: Any, rows: Any, projections: Any, *, eps: Any) -> Any:
    """The same for a norm that scales by 1 + weight."""
    return _cut(F.linear(_unscaled(x, eps), rows), projections)


def _decode_op() -> Any:
    from fxfuse.kernels.triton.norm_linears_decode import op  # imports Triton, so not before it is needed

    return op()


@kernel(PATTERN, name="triton_decode", op=_decode_op, rows=(0, 16), **TRITON)
def triton_decode(x: Any, weight: Any, projections: Any, biases: Any, *, eps: float, norm: str) -> Any:
    """At most 16 rows: one launch, each weight read once, as it is (kernels/triton/)."""
    return _launch(x, weight, projections, biases, eps, norm)


@kernel(PATTERN, name="triton_64_rows", op=_decode_op, rows=(17, 64), **TRITON)
def triton_64_rows(x: Any, weight: Any, projections: Any, biases: Any, *, eps: float, norm: str) -> Any:
    """17 to 64 rows: the same with wider tiles."""
    return _launch(x, weight, projections, biases, eps, norm)


def _launch(x: Any, weight: Any, projections: Any, biases: Any, eps: float, norm: str) -> tuple[Any, ...]:
    results = _decode_op()(x, weight, list(projections), list(_each(biases, projections)), eps, norm)
    return tuple(results[i] for i in range(len(projections)))
