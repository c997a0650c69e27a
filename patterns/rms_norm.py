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
    mean = m.view.operand(x.args["other"]) if x.op == "sub" else None
    centred = getattr(mean, "op", None) == "mean" and m.view.operand(mean.args["input"]) is m.view.operand(
        x.args["input"]
    )
    m.require(not centred, "x is centred, so this is a LayerNorm", at=x)
