"""RMSNorm by itself: ``weight * x / sqrt(mean(x^2) + eps)``, with its statistics in fp32.

``norm`` says where the result is rounded and by what it is scaled, if it is (``norms.py``). The scale is a parameter.
What is ``narrowed`` comes as ``wide``, since it is in fp32.
"""

from __future__ import annotations

from typing import Any

import torch

from fxfuse import Dim, Input, Param, Scalar, pattern
from fxfuse_patterns import norms

D = Dim("hidden")


@pattern("rms_norm")
def rms_norm(
    x: Any = Input(..., D),
    weight: Any = Param(D),
    eps: Any = Scalar(float),
    wide: Any = Input(..., D, dtype=torch.float32),
) -> Any:
    return norms.any_rms_norm(x, weight, eps, wide)


@rms_norm.constraint
def of_what_is_not_centred(m: Any) -> None:
    x = m.wide if m.x is None else m.x
    m.require(not _is_centred(m.view, x), "x is centred, so this is a LayerNorm", at=x)


def _is_centred(view: Any, x: Any) -> bool:
    """Whether this is ``y - y.mean(...)``."""
    mean = view.operand(x.args["other"]) if x.op == "sub" else None
    if mean is None or getattr(mean, "op", None) != "mean":
        return False
    return bool(view.operand(mean.args["input"]) is view.operand(x.args["input"]))
