"""Options over options: a norm by `F.normalize`, which is no RMSNorm with an eps; GLU by chunk; sequential layers."""

from __future__ import annotations

import torch.nn.functional as F
from styles.models.common import DIM, INNER, LAYERS, Decoder, Style, attend, heads, linear, ones
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Scaled to unit length: eps bounds the length from below and is not added to the mean square."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.g = DIM**0.5, ones()

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * self.scale * self.g


class GLU(nn.Module):
    def __init__(self, mult_bias: bool) -> None:
        super().__init__()
        self.act, self.proj = nn.SiLU(), linear(2 * INNER, bias=True)
        self.mult_bias = ones(INNER) if mult_bias else 1.0

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        x = x * self.act(gate)
        return x if isinstance(self.mult_bias, float) else x * self.mult_bias


class FeedForward(nn.Module):
    def __init__(self, mult_bias: bool = False) -> None:
        super().__init__()
        self.ff = nn.Sequential(GLU(mult_bias), nn.Dropout(0.0), linear(DIM, INNER, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x)


class Block(nn.Module):
    def __init__(self, mult_bias: bool = False) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (linear(DIM) for _ in range(4))
        self.norm1, self.norm2, self.ff = RMSNorm(), RMSNorm(), FeedForward(mult_bias)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm1(x)
        x = self.to_out(attend(heads(self.to_q(n)), heads(self.to_k(n)), heads(self.to_v(n)))) + x
        return self.ff(self.norm2(x)) + x


STYLE = Style(
    "x-transformers",
    lambda: Decoder(Block, RMSNorm),
    {"gated_mlp": LAYERS, "sibling_linears": LAYERS},
    {"a factor behind": (lambda: Decoder(lambda: Block(True), RMSNorm), {"sibling_linears": LAYERS})},
)
