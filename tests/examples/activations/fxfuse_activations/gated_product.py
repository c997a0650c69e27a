"""The product inside a gated MLP, ``act(gate) * up``, between the projections and whatever they are."""

import torch.nn.functional as F

from fxfuse import Dim, Input, one_of, pattern

N = Dim("n")


@pattern("gated_product")
def gated_product(gate=Input(..., N), up=Input(..., N)):
    a = one_of("act", silu=lambda: F.silu(gate), gelu_tanh=lambda: F.gelu(gate, approximate="tanh"))
    return a * up


@gated_product.constraint
def nothing_is_broadcast(m):
    m.require(m.gate.shape == m.up.shape, "gate and up must have one shape", at=m.up)
    m.require(m.gate.dtype == m.up.dtype, "gate and up must have one dtype", at=m.up)
