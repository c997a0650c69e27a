"""RMSNorm feeding a gated MLP, up to the down projection: ``down(act(gate(norm(x))) * up(norm(x)))``.

GLU variants: Shazeer, arXiv 2002.05202. The norm's output must have no other reader, and the projections' weights
must be parameters. ``proj=packed`` is one linear whose output is cut into gate and up (Phi-3, GLM).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from fxfuse import Dim, Input, Param, Scalar, one_of, pattern
from fxfuse_patterns.norms import rms_norm

D, N, BOTH, OUT = Dim("hidden"), Dim("intermediate"), Dim("2 * intermediate"), Dim("out")


def halves(t: Any) -> tuple[Any, Any]:
    first, second = t.chunk(2, -1)
    return first, second


@pattern("rms_norm_gated_mlp")
def rms_norm_gated_mlp(
    x: Any = Input(..., D),
    weight: Any = Param(D),
    eps: Any = Scalar(float),
    gate: Any = Param(N, D),
    up: Any = Param(N, D),
    gate_up: Any = Param(BOTH, D),
    down: Any = Param(OUT, N),
    gate_bias: Any = Param(N, optional=True),
    up_bias: Any = Param(N, optional=True),
    gate_up_bias: Any = Param(BOTH, optional=True),
    down_bias: Any = Param(OUT, optional=True),
) -> Any:
    h = rms_norm(x, weight, eps)
    g, u = one_of(
        "proj",
        separate=lambda: (F.linear(h, gate, gate_bias), F.linear(h, up, up_bias)),
        packed=lambda: halves(F.linear(h, gate_up, gate_up_bias)),
        packed_up_first=lambda: halves(F.linear(h, gate_up, gate_up_bias))[::-1],
    )
    a = one_of(
        "act",
        silu=lambda: F.silu(g),
        gelu=lambda: F.gelu(g),
        gelu_tanh=lambda: F.gelu(g, approximate="tanh"),
        relu=lambda: F.relu(g),
    )
    return F.linear(a * u, down, down_bias)


@rms_norm_gated_mlp.constraint
def biases_come_in_pairs(m: Any) -> None:
    m.require(
        (m.gate_bias is None) == (m.up_bias is None), "gate and up need a bias both, or neither", at=m.up or m.gate_up
    )
