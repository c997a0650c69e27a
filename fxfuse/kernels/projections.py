"""Implementations of `rms_norm_qkv`: plain PyTorch, one GEMM over stacked weights, and Triton."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from fxfuse.kernels.common import TRITON
from fxfuse.kernels.norms import normed
from fxfuse.kernels.registry import kernel
from fxfuse.params import stack

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
