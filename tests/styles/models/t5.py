"""T5 1.1: RMSNorm without a mean, a gated GELU written as its polynomial, no biases."""

from __future__ import annotations

import math

import torch
from styles.models.common import DIM, INNER, LAYERS, Decoder, Style, attend, heads, linear, ones
from torch import Tensor, nn


class LayerNorm(nn.Module):
    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = ones(), eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        variance = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        if self.weight.dtype in [torch.float16, torch.bfloat16]:
            hidden_states = hidden_states.to(self.weight.dtype)
        return self.weight * hidden_states


class NewGELU(nn.Module):
    cube = 0.044715

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + self.cube * torch.pow(x, 3.0))))


class OtherGELU(NewGELU):
    """The edit: another coefficient."""

    cube = 0.0447


class DenseGatedActDense(nn.Module):
    def __init__(self, act: type[NewGELU]) -> None:
        super().__init__()
        self.wi_0, self.wi_1, self.wo = linear(INNER), linear(INNER), linear(DIM, INNER)
        self.act, self.dropout = act(), nn.Dropout(0.0)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_gelu = self.act(self.wi_0(hidden_states))
        hidden_linear = self.wi_1(hidden_states)
        return self.wo(self.dropout(hidden_gelu * hidden_linear))


class Block(nn.Module):
    def __init__(self, act: type[NewGELU] = NewGELU) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = linear(DIM), linear(DIM), linear(DIM), linear(DIM)
        self.norm1, self.norm2, self.ff, self.dropout = LayerNorm(), LayerNorm(), DenseGatedActDense(act), nn.Dropout(0)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm1(x)
        x = x + self.dropout(self.o(attend(heads(self.q(n)), heads(self.k(n)), heads(self.v(n)))))
        return x + self.dropout(self.ff(self.norm2(x)))


EXPECT = {
    "rms_norm": 2 * LAYERS + 1,
    "add_rms_norm": 2 * LAYERS,
    "rms_norm_gated_mlp": LAYERS,
    "gated_mlp": LAYERS,
    "rms_norm_qkv": 2 * LAYERS,
}
STYLE = Style(
    "t5",
    lambda: Decoder(Block, LayerNorm),
    EXPECT,
    {
        "another coefficient": (
            lambda: Decoder(lambda: Block(OtherGELU), LayerNorm),
            {**EXPECT, "rms_norm_gated_mlp": 0, "gated_mlp": 0},
        )
    },
    bf16={"rms_norm_gated_mlp": 0, "gated_mlp": 0},  # the polynomial rounds at each step, a GELU does not
)
