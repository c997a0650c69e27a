"""Implementations of `linear`: plain PyTorch, and what a CPU does better (`cpu.py`)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from fxfuse.kernels.cpu import PACKED, WIDE, linear_of_packed, packed, wide_linear
from fxfuse.kernels.registry import kernel

PATTERN = "linear"


@kernel(PATTERN, name="plain", backward="autograd", default=True)
def plain(x: Any, weight: Any, bias: Any) -> Any:
    """The operation itself."""
    return F.linear(x, weight, bias)


@kernel(PATTERN, name="cpu_fp32_gemm", **WIDE)
def cpu_fp32_gemm(x: Any, weight: Any, bias: Any) -> Any:
    """An fp32 GEMM from a bf16 weight; less rounding than eager, no second copy."""
    return wide_linear(x, weight, bias)


def cpu_packed(x: Any, weight: Any, blocks: Any, bias: Any) -> Any:
    """One GEMM over a packed weight; `weight` is asked for its size only."""
    return linear_of_packed(x, blocks, bias, weight.shape[0]).to(x.dtype)


for _name, _requires in PACKED.items():
    kernel(PATTERN, name=_name, derive={"blocks": packed("weight")}, **_requires)(cpu_packed)
