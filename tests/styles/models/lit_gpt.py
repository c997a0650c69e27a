"""One class for many architectures: an RMSNorm whose scale may have one added, multiplied in fp32 before the cast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from styles.models.common import DIM, INNER, LAYERS, Decoder, Style, attend, heads, linear, ones
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, add_unit_offset: bool = False) -> None:
        super().__init__()
        self.weight, self.eps, self.add_unit_offset = ones(), 1e-6, add_unit_offset

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = x.float()
        norm_x = torch.mean(x * x, dim=-1, keepdim=True)
        x_normed = x * torch.rsqrt(norm_x + self.eps)
        weight = (1 + self.weight.float()) if self.add_unit_offset else self.weight
        return (x_normed * weight.float()).to(dtype=dtype)


class LLaMAMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc_1, self.fc_2, self.proj = linear(INNER), linear(INNER), linear(DIM, INNER)

    def act(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def forward(self, x: Tensor) -> Tensor:
        x_fc_1, x_fc_2 = self.fc_1(x), self.fc_2(x)
        return self.proj(self.act(x_fc_1) * x_fc_2)


class GemmaMLP(LLaMAMLP):
    def act(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


class SharedMLP(LLaMAMLP):
    """The edit: the second projection reads what the first gave."""

    def __init__(self) -> None:
        super().__init__()
        self.fc_2 = linear(INNER, INNER)

    def forward(self, x: Tensor) -> Tensor:
        x_fc_1 = self.fc_1(x)
        return self.proj(self.act(x_fc_1) * self.fc_2(x_fc_1))


class Block(nn.Module):
    def __init__(self, mlp: type[LLaMAMLP], offset: bool) -> None:
        super().__init__()
        self.norm_1, self.norm_2, self.mlp = RMSNorm(offset), RMSNorm(offset), mlp()
        self.qkv, self.proj = linear(3 * DIM), linear(DIM)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_1(x)).split((DIM, DIM, DIM), dim=-1)
        x = self.proj(attend(heads(q), heads(k), heads(v))) + x
        return self.mlp(self.norm_2(x)) + x


def build(mlp: type[LLaMAMLP], offset: bool = False) -> nn.Module:
    return Decoder(lambda: Block(mlp, offset), lambda: RMSNorm(offset))


NORMS = {"rms_norm": 2 * LAYERS + 1, "add_rms_norm": 2 * LAYERS}
MLPS = {"rms_norm_gated_mlp": LAYERS, "gated_mlp": LAYERS, "rms_norm_qkv": LAYERS}
LLAMA = Style(
    "lit-gpt Llama",
    lambda: build(LLaMAMLP),
    {**NORMS, **MLPS},
    {"one after the other": (lambda: build(SharedMLP), NORMS)},
)
GEMMA = Style("lit-gpt Gemma", lambda: build(GemmaMLP, offset=True), {**NORMS, **MLPS})
