"""Inference code that packs query, key and value by hand, with `torch.mean(x * x)` in its norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from styles.models.common import DIM, INNER, LAYERS, Decoder, Style, attend, heads, linear, ones
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = ones()

    def _norm(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(torch.mean(x * x, dim=-1, keepdim=True) + 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        output = self._norm(x.float()).type_as(x)
        return output * self.weight


class CrossedNorm(RMSNorm):
    """The edit: the square is a product of two different values."""

    def _norm(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(torch.mean(x * x.abs(), dim=-1, keepdim=True) + 1e-5)


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3, self.w2 = linear(INNER), linear(INNER), linear(DIM, INNER)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, norm: type[RMSNorm] = RMSNorm) -> None:
        super().__init__()
        self.wqkv, self.wo = linear(3 * DIM), linear(DIM)
        self.attention_norm, self.ffn_norm, self.feed_forward = norm(), norm(), FeedForward()

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.wqkv(x).split([DIM, DIM, DIM], dim=-1)
        return self.wo(attend(heads(q), heads(k), heads(v)))

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.attention(self.attention_norm(x))
        return h + self.feed_forward(self.ffn_norm(h))


EXPECT = {
    "rms_norm": 2 * LAYERS + 1,
    "add_rms_norm": 2 * LAYERS,
    "rms_norm_gated_mlp": LAYERS,
    "gated_mlp": LAYERS,
    "rms_norm_qkv": LAYERS,
}
STYLE = Style(
    "gpt-fast",
    lambda: Decoder(Block, RMSNorm),
    EXPECT,
    {
        "square of two values": (
            lambda: Decoder(lambda: Block(CrossedNorm), RMSNorm),
            {"rms_norm": 1, "add_rms_norm": 1, "gated_mlp": LAYERS},
        )
    },
)
