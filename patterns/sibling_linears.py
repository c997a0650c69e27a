"""Two or more projections of one tensor, of any widths: one GEMM over stacked weights serves them all.

Query, key and value where no RMSNorm of their own comes before (behind one it is `rms_norm_qkv`), gate and up, the
projections of latent attention and of state-space mixers. Siblings are taken together that all have a bias, or that
all have none.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from fxfuse import Dim, Input, Param, many, pattern

D, OUT = Dim("hidden"), Dim("out")


@pattern("sibling_linears")
def sibling_linears(
    x: Any = Input(..., D),
    projections: Any = Param(OUT, D, many=True),
    biases: Any = Param(OUT, optional=True, many=True),
) -> Any:
    return many(lambda w, bias: F.linear(x, w, bias), projections, biases)
