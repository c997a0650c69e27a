"""The residual add and the RMSNorm that reads the sum: ``total = x + residual``, and ``norm(total)``.

Both are results: the sum is the next residual. In a pre-norm decoder the add closes one block, or layer, and the norm
opens the next, so the pair crosses the borders that module paths draw.
"""

from __future__ import annotations

from typing import Any

from fxfuse import Dim, Input, Param, Scalar, pattern
from fxfuse_patterns.norms import rms_norm

D = Dim("hidden")


@pattern("add_rms_norm")
def add_rms_norm(
    x: Any = Input(..., D), residual: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float)
) -> Any:
    total = x + residual
    return total, rms_norm(total, weight, eps)
