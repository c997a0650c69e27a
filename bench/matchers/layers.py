"""A decoder layer as Llama has it, for graphs of realistic make-up: half of it is attention, where no site is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.matchers.blocks import EPS, early_norm, gated_mlp

WIDTH, HEADS, INNER, TOKENS = 32, 4, 48, 6
SHAPE = (2, TOKENS, WIDTH)


class DecoderLayer(nn.Module):
    """RMSNorm, attention with rotary positions, RMSNorm, gated MLP; two residuals."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape).mul(0.1).to(dtype), requires_grad=False)

        self.first, self.second = parameter(WIDTH), parameter(WIDTH)
        self.query, self.key, self.value, self.out = (parameter(WIDTH, WIDTH) for _ in range(4))
        self.gate, self.up, self.down = parameter(INNER, WIDTH), parameter(INNER, WIDTH), parameter(WIDTH, INNER)
        angles = torch.outer(torch.arange(TOKENS), 1e4 ** -torch.linspace(0, 1, WIDTH // HEADS // 2)).repeat(1, 2)
        self.cos, self.sin = nn.Buffer(angles.cos().to(dtype)), nn.Buffer(angles.sin().to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        h = early_norm(x, self.first, EPS)
        split = (*h.shape[:-1], HEADS, WIDTH // HEADS)
        query = self._turned(F.linear(h, self.query).view(split).transpose(1, 2))
        key = self._turned(F.linear(h, self.key).view(split).transpose(1, 2))
        value = F.linear(h, self.value).view(split).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + F.linear(mixed.transpose(1, 2).reshape(h.shape), self.out)
        return x + gated_mlp(early_norm(x, self.second, EPS), self.gate, self.up, self.down)

    def _turned(self, t: Tensor) -> Tensor:
        half = t.shape[-1] // 2
        return t * self.cos + torch.cat((-t[..., half:], t[..., :half]), -1) * self.sin


class Model(nn.Module):
    """Layers one after another."""

    def __init__(self, layers: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dtype) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x
