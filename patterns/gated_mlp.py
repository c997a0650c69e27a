"""A gated MLP whose norm is not next to it: ``down(act(gate(x)) * up(x))``.

GLU variants: Shazeer, arXiv 2002.05202. So it is where the norm has other readers, comes after (OLMo 2), or is of
another kind; with an RMSNorm of its own in front it is `rms_norm_gated_mlp`, which spans more. ``proj=packed`` is one
linear whose output is cut into gate and up.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from fxfuse import Dim, Input, Param, one_of, pattern
from fxfuse_patterns.rms_norm_gated_mlp import halves

D, N, BOTH, OUT = Dim("hidden"), Dim("intermediate"), Dim("2 * intermediate"), Dim("out")


@pattern("gated_mlp")
def gated_mlp(
    x: Any = Input(..., D),
    gate: Any = Param(N, D),
    up: Any = Param(N, D),
    gate_up: Any = Param(BOTH, D),
    down: Any = Param(OUT, N),
    gate_bias: Any = Param(N, optional=True),
    up_bias: Any = Param(N, optional=True),
    gate_up_bias: Any = Param(BOTH, optional=True),
    down_bias: Any = Param(OUT, optional=True),
) -> Any:
    g, u = one_of(
        "proj",
        separate=lambda: (F.linear(x, gate, gate_bias), F.linear(x, up, up_bias)),
        packed=lambda: halves(F.linear(x, gate_up, gate_up_bias)),
        packed_up_first=lambda: halves(F.linear(x, gate_up, gate_up_bias))[::-1],
    )
    a = one_of(
        "act",
        silu=lambda: F.silu(g),
        gelu=lambda: F.gelu(g),
        gelu_tanh=lambda: F.gelu(g, approximate="tanh"),
        relu=lambda: F.relu(g),
    )
    return F.linear(a * u, down, down_bias)


@gated_mlp.constraint
def biases_come_in_pairs(m: Any) -> None:
    m.require(
        (m.gate_bias is None) == (m.up_bias is None), "gate and up need a bias both, or neither", at=m.up or m.gate_up
    )
