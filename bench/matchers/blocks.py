"""The model that is matched in: blocks of RMSNorm and a gated MLP, each block spelled by a function of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN, INTER = 8, 12
EPS = 1e-6

Body = Callable[["Block", Tensor], Any]
"""What a block computes from its parameters and its input; a tuple's first item is the block's result."""


class Block(nn.Module):
    """The parameters of one site, and a residual around whatever ``body`` computes."""

    def __init__(self, body: Body, dtype: torch.dtype, *, bias: bool = False, eps: float = EPS, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator).to(dtype), requires_grad=False)

        self.weight = parameter(HIDDEN)
        self.gate, self.up, self.down = parameter(INTER, HIDDEN), parameter(INTER, HIDDEN), parameter(HIDDEN, INTER)
        self.gate_bias = parameter(INTER) if bias else None
        self.up_bias = parameter(INTER) if bias else None
        self.down_bias = parameter(HIDDEN) if bias else None
        self.eps = eps
        self.body = body

    def forward(self, x: Tensor) -> Any:
        made = self.body(self, x)
        return (x + made[0], *made[1:]) if isinstance(made, tuple) else (x + made,)


class Blocks(nn.Module):
    """Several blocks, each with an input of its own, so that a wrong rewrite of one stays with that one."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, *inputs: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        return tuple(block(x) for block, x in zip(self.blocks, inputs, strict=True))


# --- the pattern's function, as every arm is given it -----------------------------------------------------------------


def early_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Llama's RMSNorm: statistics in fp32, back to the input's dtype, then the scale."""
    h = x.to(torch.float32)
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return weight * h.to(x.dtype)


def late_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """GPT-OSS's: the scale in fp32, then back."""
    h = x.to(torch.float32)
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return (weight * h).to(x.dtype)


NORMS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"early": early_norm, "late": late_norm}


def gated_mlp(
    h: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
) -> Tensor:
    return F.linear(F.silu(F.linear(h, gate, gate_bias)) * F.linear(h, up, up_bias), down, down_bias)


def mlp_of(m: Block, h: Tensor) -> Tensor:
    return gated_mlp(h, m.gate, m.up, m.down, m.gate_bias, m.up_bias, m.down_bias)


def early(m: Block, x: Tensor) -> Tensor:
    return mlp_of(m, early_norm(x, m.weight, m.eps))


def late(m: Block, x: Tensor) -> Tensor:
    return mlp_of(m, late_norm(x, m.weight, m.eps))
