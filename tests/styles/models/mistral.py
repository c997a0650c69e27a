"""Inference code of a model's own vendor: residuals `r` and `h`, grouped heads, projections of unequal widths."""

from __future__ import annotations

import torch
from styles.models.common import DIM, HEADS, INNER, LAYERS, Decoder, Style, attend, linear, ones
from torch import Tensor, nn

KV_HEADS, HEAD_DIM = 2, DIM // HEADS


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eps, self.weight = 1e-5, ones()

    def _norm(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        output = self._norm(x.float()).type_as(x)
        return output * self.weight


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = linear(INNER), linear(DIM, INNER), linear(INNER)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = linear(DIM), linear(KV_HEADS * HEAD_DIM), linear(KV_HEADS * HEAD_DIM)
        self.wo = linear(DIM)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        xq, xk, xv = self.wq(x), self.wk(x), self.wv(x)
        xq, xk, xv = xq.view(b, n, HEADS, -1), xk.view(b, n, KV_HEADS, -1), xv.view(b, n, KV_HEADS, -1)
        key, value = (torch.repeat_interleave(t, HEADS // KV_HEADS, dim=2) for t in (xk, xv))
        return self.wo(attend(xq, key, value))


class Block(nn.Module):
    def __init__(self, late_residual: bool = False) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = RMSNorm(), RMSNorm()
        self.attention, self.feed_forward, self.late_residual = Attention(), FeedForward(), late_residual

    def forward(self, x: Tensor) -> Tensor:
        r = self.attention(self.attention_norm(x))
        h = x + r
        n = self.ffn_norm(h)
        r = self.feed_forward(n)
        return (n if self.late_residual else h) + r


NORMS = {"rms_norm": 2 * LAYERS + 1, "add_rms_norm": 2 * LAYERS}
STYLE = Style(
    "mistral-inference",
    lambda: Decoder(Block, RMSNorm),
    {**NORMS, "rms_norm_gated_mlp": LAYERS, "gated_mlp": LAYERS, "rms_norm_qkv": 2 * LAYERS},
    {
        "the norm is the residual": (
            lambda: Decoder(lambda: Block(late_residual=True), RMSNorm),
            {**NORMS, "gated_mlp": LAYERS, "rms_norm_qkv": LAYERS, "rms_norm_gated_mlp": 0},
        )
    },
)
