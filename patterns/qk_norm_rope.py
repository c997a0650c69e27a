"""RMSNorm of query or key and the rotation that follows it (Qwen3, Gemma 3, OLMo 2).

``layout`` says what lies between: nothing, heads that change places with positions, or, where the norm is over all
heads at once, the cut into heads of size ``head``, too. The rotation is of halves, its tables as they come (`rope` has
the others). The scale must be a parameter, and the norm has no other reader.
"""

from __future__ import annotations

from typing import Any

from fxfuse import Dim, Input, Param, Scalar, one_of, pattern
from fxfuse_patterns.norms import rms_norm
from fxfuse_patterns.rotations import half_turned

D = Dim("normed")


@pattern("qk_norm_rope")
def qk_norm_rope(
    x: Any = Input(..., D),
    weight: Any = Param(D),
    eps: Any = Scalar(float),
    cos: Any = Input(...),
    sin: Any = Input(...),
    head: Any = Scalar(int),
) -> Any:
    h = rms_norm(x, weight, eps)
    h = one_of(
        "layout",
        straight=lambda: h,
        swapped=lambda: h.transpose(-3, -2),
        cut_and_swapped=lambda: h.unflatten(-1, (-1, head)).transpose(-3, -2),
    )
    return (h * cos + half_turned(h) * sin).to(h.dtype)
