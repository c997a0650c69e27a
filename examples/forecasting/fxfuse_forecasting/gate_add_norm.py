"""Gate, skip connection and LayerNorm: ``layer_norm(skip + value * sigmoid(gate))``, value and gate of one projection.

The output block of the gated residual network (Temporal Fusion Transformer: Lim et al., arXiv 1912.09363), where it
stands behind every projection. ``gate=gtu`` is WaveNet's unit (arXiv 1609.03499). ``glu`` and ``sigmoid`` are two
functions in bf16: ``F.glu`` rounds once, and ``value * sigmoid(gate)`` twice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fxfuse import Dim, Input, Param, Scalar, one_of, pattern

N = Dim("n")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pattern("gate_add_norm")
def gate_add_norm(
    packed: Any = Input(..., 2 * N, dtype=DTYPES),
    skip: Any = Input(..., N, dtype=DTYPES),
    weight: Any = Param(N),
    bias: Any = Param(N, optional=True),
    eps: Any = Scalar(float),
) -> Any:
    value, gate = packed.chunk(2, -1)
    gated = one_of(
        "gate",
        glu=lambda: F.glu(packed, dim=-1),
        sigmoid=lambda: value * torch.sigmoid(gate),
        gtu=lambda: torch.tanh(value) * torch.sigmoid(gate),
    )
    return F.layer_norm(skip + gated, weight.shape, weight, bias, eps)


@gate_add_norm.constraint
def skip_is_not_broadcast(m: Any) -> None:
    m.require(m.skip.shape[:-1] == m.packed.shape[:-1], "skip must have the leading sizes of packed", at=m.skip)
