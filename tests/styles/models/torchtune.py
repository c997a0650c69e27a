"""Recipes' components: `F.rms_norm` in fp32, a feed-forward whose third linear is optional."""

from __future__ import annotations

import torch.nn.functional as F
from styles.models.common import DIM, INNER, LAYERS, Decoder, Style, attend, heads, linear, ones
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.normalized_shape = (DIM,)
        self.scale = ones()

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, self.scale.float(), 1e-6).to(x.dtype)


class FeedForward(nn.Module):
    def __init__(self, gate: nn.Module, down: nn.Module, up: nn.Module | None, activation: nn.Module) -> None:
        super().__init__()
        self.w1, self.w2, self.w3, self.activation = gate, down, up, activation

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.w1(x))
        if self.w3 is not None:
            h = h * self.w3(x)
        return self.w2(h)


class Block(nn.Module):
    def __init__(self, gated: bool = True) -> None:
        super().__init__()
        up = linear(INNER) if gated else None
        self.q_proj, self.k_proj, self.v_proj, self.output_proj = (linear(DIM) for _ in range(4))
        self.sa_norm, self.mlp_norm = RMSNorm(), RMSNorm()
        self.mlp = FeedForward(linear(INNER), linear(DIM, INNER), up, nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        n = self.sa_norm(x)
        h = self.output_proj(attend(heads(self.q_proj(n)), heads(self.k_proj(n)), heads(self.v_proj(n)))) + x
        return h + self.mlp(self.mlp_norm(h))


EXPECT = {
    "rms_norm": 2 * LAYERS + 1,
    "add_rms_norm": 2 * LAYERS,
    "rms_norm_gated_mlp": LAYERS,
    "gated_mlp": LAYERS,
    "rms_norm_qkv": 2 * LAYERS,
}
STYLE = Style(
    "torchtune",
    lambda: Decoder(Block, RMSNorm),
    EXPECT,
    {
        "no gate": (
            lambda: Decoder(lambda: Block(gated=False), RMSNorm),
            {**EXPECT, "rms_norm_gated_mlp": 0, "gated_mlp": 0, "rms_norm_qkv": LAYERS},
        )
    },
)
