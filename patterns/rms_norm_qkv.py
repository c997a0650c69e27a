"""RMSNorm feeding two or three projections of any widths, such as query, key and value.

The norm's output must have no other reader, and the projections' weights must be parameters. Either all of the
projections have a bias or none has.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from fxfuse import Dim, Input, Param, Scalar, many, pattern
from fxfuse_patterns.norms import rms_norm

D, OUT = Dim("hidden"), Dim("out")


@pattern("rms_norm_qkv")
def rms_norm_qkv(
    x: Any = Input(..., D),
    weight: Any = Param(D),
    eps: Any = Scalar(float),
    projections: Any = Param(OUT, D, many=True),
    biases: Any = Param(OUT, optional=True, many=True),
) -> Any:
    h = rms_norm(x, weight, eps)
    return many(lambda w, bias: F.linear(h, w, bias), projections, biases)


@rms_norm_qkv.constraint
def three_at_most(m: Any) -> None:
    m.require(len(m.projections) <= 3, "there are two or three projections", at=m.x)
