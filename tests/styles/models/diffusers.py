"""Diffusion transformers' parts: GEGLU as a module in a list, an RMSNorm that casts to its weight's dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from styles.models.common import DIM, INNER, LAYERS, Decoder, Style, attend, heads, linear, ones
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, weighted: bool = True) -> None:
        super().__init__()
        self.eps = 1e-6
        self.weight = ones() if weighted else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        input_dtype = hidden_states.dtype
        variance = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.eps)
        if self.weight is None:
            return hidden_states.to(input_dtype)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            hidden_states = hidden_states.to(self.weight.dtype)
        return hidden_states * self.weight


class GEGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = linear(2 * INNER, bias=True)

    def gelu(self, gate: Tensor) -> Tensor:
        return F.gelu(gate)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states, gate = self.proj(hidden_states).chunk(2, dim=-1)
        return hidden_states * self.gelu(gate)


class Shifted(GEGLU):
    """The edit: one is added to the gate."""

    def gelu(self, gate: Tensor) -> Tensor:
        return F.gelu(gate) + 1


class FeedForward(nn.Module):
    def __init__(self, act: type[GEGLU]) -> None:
        super().__init__()
        self.net = nn.ModuleList([act(), nn.Dropout(0.0), linear(DIM, INNER, bias=True)])

    def forward(self, hidden_states: Tensor) -> Tensor:
        for module in self.net:
            hidden_states = module(hidden_states)
        return hidden_states


class Block(nn.Module):
    def __init__(self, act: type[GEGLU] = GEGLU) -> None:
        super().__init__()
        self.norm1, self.norm2, self.ff = RMSNorm(), RMSNorm(), FeedForward(act)
        self.to_q, self.to_k, self.to_v = linear(DIM), linear(DIM), linear(DIM)
        self.to_out = nn.ModuleList([linear(DIM, bias=True), nn.Dropout(0.0)])

    def forward(self, hidden_states: Tensor) -> Tensor:
        n = self.norm1(hidden_states)
        attn = attend(heads(self.to_q(n)), heads(self.to_k(n)), heads(self.to_v(n)))
        for module in self.to_out:
            attn = module(attn)
        hidden_states = attn + hidden_states
        return self.ff(self.norm2(hidden_states)) + hidden_states


EXPECT = {
    "rms_norm": 2 * LAYERS + 1,
    "add_rms_norm": 2 * LAYERS,
    "rms_norm_gated_mlp": LAYERS,
    "gated_mlp": LAYERS,
    "rms_norm_qkv": LAYERS,
}
STYLE = Style(
    "diffusers",
    lambda: Decoder(Block, RMSNorm),
    EXPECT,
    {
        "shifted gate": (
            lambda: Decoder(lambda: Block(Shifted), RMSNorm),
            {**EXPECT, "rms_norm_gated_mlp": 0, "gated_mlp": 0},
        )
    },
)
