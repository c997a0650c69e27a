"""RMSNorm by itself: ``weight * x / sqrt(mean(x^2) + eps)``, with its statistics in fp32.

``norm`` says where the result is rounded and by what it is scaled, if it is (``norms.py``). The scale is a parameter.
"""

from __future__ import annotations

from typing import Any

from fxfuse import Dim, Input, Param, Scalar, pattern
from fxfuse_patterns import norms

D = Dim("hidden")


@pattern("rms_norm")
def rms_norm(x: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float)) -> Any:
    return norms.rms_norm_or_bare(x, weight, eps)
