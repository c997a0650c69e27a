"""`rms_norm_gated_mlp` and the residual add behind it: ``residual + down(act(gate(norm(x))) * up(norm(x)))``.

In a pre-norm decoder ``residual`` is ``x`` itself. It is a pattern of its own, and not an operand of the other, so that
a kernel for that one serves every site of it, whatever is done with the result.
"""

from __future__ import annotations

from typing import Any

from fxfuse import Dim, Input, Param, Scalar, pattern
from fxfuse_patterns import rms_norm_gated_mlp as mlp

D, N, BOTH, OUT = Dim("hidden"), Dim("intermediate"), Dim("2 * intermediate"), Dim("out")


@pattern("rms_norm_gated_mlp_add")
def rms_norm_gated_mlp_add(
    x: Any = Input(..., D),
    residual: Any = Input(..., OUT),
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
    y = mlp.rms_norm_gated_mlp.function(
        x, weight, eps, gate, up, gate_up, down, gate_bias, up_bias, gate_up_bias, down_bias
    )
    return residual + y


rms_norm_gated_mlp_add.constraint(mlp.biases_come_in_pairs)
