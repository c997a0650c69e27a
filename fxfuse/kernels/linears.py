"""Implementations of `linear`: plain PyTorch, and what a CPU does better (`cpu.py`)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

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
from fxfuse.kernels.registry import kernel
from fxfuse.params import panels

PATTERN = "linear"


@kernel(PATTERN, name="plain", backward="autograd", default=True)
def plain(x: Any, weight: Any, bias: Any) -> Any:
    """The operation itself."""
    return F.linear(x, weight, bias)


@kernel(PATTERN, name="cpu_fp32_gemm", **WIDE)
def cpu_fp32_gemm(x: Any, weight: Any, bias: Any) -> Any:
    """An fp32 GEMM from a bf16 weight; less rounding than eager, no second copy."""
    return wide_linear(x, weight, bias)


def cpu_panels(x: Any, weight: Any, bias: Any) -> Any:
    """In fp32, from the weight as it is, panel by panel."""
    return low_linear(x, weight, bias).to(x.dtype)


for _name, _requires in PANELS.items():
    kernel(PATTERN, name=_name, **_requires)(cpu_panels)


@kernel(PATTERN, derive={"kept": panels("weight")}, **KEPT_PANELS)
def cpu_kept_panels(x: Any, weight: Any, kept: Any, bias: Any) -> Any:
    """From panels that are kept; `weight` is asked for its size only."""
    return kept_linear(x, kept, bias, weight.shape[0]).to(x.dtype)


def cpu_packed(x: Any, weight: Any, blocks: Any, bias: Any) -> Any:
    """One GEMM over a packed weight; `weight` is asked for its size only."""
    return linear_of_packed(x, blocks, bias, weight.shape[0]).to(x.dtype)


for _name, _requires in PACKED.items():
    kernel(PATTERN, name=_name, derive={"blocks": packed("weight")}, **_requires)(cpu_packed)
