"""A speedrun's model: norms without weights, squared ReLU, rotation with its sign flipped, queries and keys normed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from styles.models.common import DIM, HEADS, INNER, LAYERS, Decoder, Style, attend, heads, linear
from torch import Tensor, nn


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


class Norm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return norm(x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    half = x.shape[3] // 2
    x1, x2 = x[..., :half], x[..., half:]
    y1 = x1 * cos + x2 * sin * sign
    y2 = x1 * (-sin * sign) + x2 * cos
    return torch.cat([y1, y2], 3)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.c_proj = linear(INNER), linear(DIM, INNER)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_q, self.c_k, self.c_v, self.c_proj = linear(DIM), linear(DIM), linear(DIM), linear(DIM)
        self.mlp = MLP()
        angles = torch.arange(16)[:, None] * 0.5 ** torch.arange(DIM // HEADS // 2)
        self.register_buffer("cos", angles.cos()[None, :, None], persistent=False)
        self.register_buffer("sin", angles.sin()[None, :, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n = norm(x)
        q, k, v = heads(self.c_q(n)), heads(self.c_k(n)), heads(self.c_v(n))
        cos, sin = self.cos[:, : x.shape[1]], self.sin[:, : x.shape[1]]
        q, k = norm(rotate(q, cos, sin, 1.0)), norm(rotate(k, cos, sin, 1.0))
        x = x + self.c_proj(attend(q, k, v))
        return x + self.mlp(norm(x))


STYLE = Style(
    "nanochat",
    lambda: Decoder(Block, Norm),
    {"rms_norm": 4 * LAYERS + 1, "sibling_linears": LAYERS, "rope": 0},
)
