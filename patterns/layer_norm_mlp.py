"""LayerNorm and an ungated MLP: ``proj(act(fc(norm(x))))``, or ``norm(x + proj(act(fc(x))))``.

``order`` says where the norm stands: before (GPT-2, GPT-NeoX, OPT) or after the residual add (BERT, BART, OPT-350m).
``store=columns`` are weights kept input by output, with biases (``*_shift``), as GPT-2's Conv1D does. ``gelu_new`` is
the tanh approximation written out, which in bf16 rounds at every step and is another function than ``gelu_tanh``.
``affine=scale`` is a norm without a bias (MPT).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from fxfuse import Dim, Input, Param, Scalar, one_of, pattern

D, N, OUT = Dim("hidden"), Dim("intermediate"), Dim("out")


def layer_norm(x: Any, weight: Any, bias: Any, eps: Any) -> Any:
    return one_of(
        "affine",
        scale_shift=lambda: F.layer_norm(x, weight.shape, weight, bias, eps),
        scale=lambda: F.layer_norm(x, weight.shape, weight, None, eps),
    )


def activation(h: Any) -> Any:
    return one_of(
        "act",
        gelu=lambda: F.gelu(h),
        gelu_tanh=lambda: F.gelu(h, approximate="tanh"),
        gelu_new=lambda: 0.5 * h * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (h + 0.044715 * torch.pow(h, 3.0)))),
        quick_gelu=lambda: h * torch.sigmoid(1.702 * h),
        relu=lambda: F.relu(h),
        relu2=lambda: F.relu(h).square(),
    )


@pattern("layer_norm_mlp")
def layer_norm_mlp(
    x: Any = Input(..., D),
    weight: Any = Param(D),
    bias: Any = Param(D),
    eps: Any = Scalar(float),
    fc: Any = Param(N, D),
    proj: Any = Param(OUT, N),
    fc_bias: Any = Param(N, optional=True),
    proj_bias: Any = Param(OUT, optional=True),
    fc_columns: Any = Param(D, N),
    fc_shift: Any = Param(N),
    proj_columns: Any = Param(N, OUT),
    proj_shift: Any = Param(OUT),
) -> Any:
    h = one_of("order", before=lambda: layer_norm(x, weight, bias, eps), after=lambda: x)
    h = one_of("store", rows=lambda: F.linear(h, fc, fc_bias), columns=lambda: F.linear(h, fc_columns.t(), fc_shift))
    h = activation(h)
    y = one_of(
        "store", rows=lambda: F.linear(h, proj, proj_bias), columns=lambda: F.linear(h, proj_columns.t(), proj_shift)
    )
    return one_of("order", before=lambda: y, after=lambda: layer_norm(x + y, weight, bias, eps))
