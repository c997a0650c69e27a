"""Implementations of `sibling_linears`: one GEMM over stacked weights, whose result is cut."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from fxfuse.kernels.projections import BIASED
from fxfuse.kernels.registry import kernel
from fxfuse.params import stack

PATTERN = "sibling_linears"


@kernel(PATTERN, name="plain", backward="autograd", default=True)
def plain(x: Any, projections: Any, biases: Any) -> Any:
    """The reference's operations in the reference's order."""
    given = (None,) * len(projections) if biases is None else biases
    return tuple(F.linear(x, w, b) for w, b in zip(projections, given, strict=True))


@kernel(PATTERN, name="stacked", derive={"rows": stack("projections")}, backward="autograd", default=True)
def stacked(x: Any, rows: Any, projections: Any) -> Any:
    """One GEMM over the stacked weights; `projections` are asked for their sizes only."""
    return _cut(F.linear(x, rows), projections)


@kernel(PATTERN, name="stacked_biased", derive=BIASED, backward="autograd", default=True)
def stacked_biased(x: Any, rows: Any, bias: Any, projections: Any) -> Any:
    """The same with stacked biases."""
    return _cut(F.linear(x, rows, bias), projections)


def _cut(y: Any, projections: Any) -> tuple[Any, ...]:
    return tuple(part.contiguous() for part in y.split([w.shape[0] for w in projections], -1))
