"""GPT-2 in a page: LayerNorm with an optional bias, one linear for query, key and value, GELU."""

from __future__ import annotations

import torch.nn.functional as F
from styles.models.common import DIM, INNER, LAYERS, Decoder, Style, attend, heads, linear, ones
from torch import Tensor, nn


class LayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = ones()
        self.bias = nn.Parameter(ones().detach() - 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.c_proj = linear(INNER, bias=True), linear(DIM, INNER, bias=True)
        self.gelu, self.dropout = nn.GELU(), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class ClampedMLP(MLP):
    """The edit: the activation is clamped."""

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x)).clamp(max=0.3)))


class Block(nn.Module):
    def __init__(self, mlp: type[MLP] = MLP) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.mlp = LayerNorm(), LayerNorm(), mlp()
        self.c_attn, self.c_proj = linear(3 * DIM, bias=True), linear(DIM, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.c_attn(self.ln_1(x)).split(DIM, dim=2)
        x = x + self.c_proj(attend(heads(q), heads(k), heads(v)))
        return x + self.mlp(self.ln_2(x))


STYLE = Style(
    "nanogpt",
    lambda: Decoder(Block, LayerNorm),
    {"layer_norm_mlp": LAYERS},
    {"clamped activation": (lambda: Decoder(lambda: Block(ClampedMLP), LayerNorm), {})},
)
