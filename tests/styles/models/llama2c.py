"""The single-file Llama: `_norm` in fp32 and `type_as`, w1, w2, w3, dropout behind the feed-forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from styles.models.common import DIM, INNER, LAYERS, Decoder, Style, attend, heads, linear, ones
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, dim: int = DIM, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = ones(dim)

    def _norm(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        return self._norm(x.float()).type_as(x) * self.weight


class SumNorm(RMSNorm):
    """The edit: a sum where the mean was."""

    def _norm(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + self.eps)


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = linear(INNER), linear(DIM, INNER), linear(INNER)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class ScaledGate(FeedForward):
    """The edit: the activation is scaled before the product."""

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.w2(1.5 * F.silu(self.w1(x)) * self.w3(x)))


class Block(nn.Module):
    def __init__(self, norm: type[RMSNorm] = RMSNorm, mlp: type[FeedForward] = FeedForward) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = linear(DIM), linear(DIM), linear(DIM), linear(DIM)
        self.attention_norm, self.ffn_norm, self.feed_forward = norm(), norm(), mlp()

    def forward(self, x: Tensor) -> Tensor:
        n = self.attention_norm(x)
        h = x + self.wo(attend(heads(self.wq(n)), heads(self.wk(n)), heads(self.wv(n))))
        return h + self.feed_forward(self.ffn_norm(h))


EXPECT = {
    "rms_norm": 2 * LAYERS + 1,
    "add_rms_norm": 2 * LAYERS,
    "rms_norm_gated_mlp": LAYERS,
    "gated_mlp": LAYERS,
    "rms_norm_qkv": 2 * LAYERS,
}
STYLE = Style(
    "llama2c",
    lambda: Decoder(Block, RMSNorm),
    EXPECT,
    {
        "sum instead of mean": (
            lambda: Decoder(lambda: Block(norm=SumNorm), RMSNorm),
            {"rms_norm": 1, "add_rms_norm": 1, "gated_mlp": LAYERS},
        ),
        "scaled activation": (
            lambda: Decoder(lambda: Block(mlp=ScaledGate), RMSNorm),
            {**EXPECT, "rms_norm_gated_mlp": 0, "gated_mlp": 0},
        ),
    },
)
