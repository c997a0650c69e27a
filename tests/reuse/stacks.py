"""Stacks of equal blocks with one thing that is not as usual, and what compiling one block for all must make of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxfuse

HIDDEN, HEADS, ROWS = 16, 2, 6


def rms(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    h = x.to(torch.float32)
    return weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


class Block(nn.Module):
    """Attention and a gated MLP, each behind a norm. ``twist`` sees the block and its result, and may do anything."""

    def __init__(self, number: int, twist: Callable[..., Tensor] | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.number, self.twist, self.dropout = number, twist, dropout
        self.first, self.second = nn.Parameter(torch.ones(HIDDEN)), nn.Parameter(torch.ones(HIDDEN))
        self.q, self.k, self.v, self.o = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(4))
        self.gate, self.up, self.down = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(3))

    def forward(self, x: Tensor, cos: Tensor | None = None) -> Tensor:
        h = rms(x, self.first)
        q, k, v = (
            p(h).view(*h.shape[:-1], HEADS, HIDDEN // HEADS).transpose(1, 2) for p in (self.q, self.k, self.v)
        )  # fmt: skip
        if cos is not None:
            q, k = q * cos, k * cos
        scores = torch.softmax(q @ k.transpose(-1, -2) * 0.25, -1)
        mixed = (scores @ v).transpose(1, 2).reshape(x.shape)
        x = x + F.dropout(self.o(mixed), self.dropout, self.training)
        h = rms(x, self.second)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return x if self.twist is None else self.twist(self, x)


class Stack(nn.Module):
    """Blocks one after the other. ``between`` may change what goes from one to the next."""

    def __init__(self, layers: int = 6, twist: Callable[..., Tensor] | None = None, **kwargs: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(i, twist, **kwargs) for i in range(layers))
        self.last = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = layer(x)
        return rms(x, self.last)


def rows(count: int = ROWS, seed: int = 1) -> Tensor:
    return torch.randn(2, count, HIDDEN, generator=torch.Generator().manual_seed(seed))


def compiled(model: Callable[..., Any], inner: str = "aot_eager", **options: Any) -> Callable[..., Any]:
    backend = fxfuse.Backend(inner=inner, on_error="raise", on_miss="silent", **options)
    return torch.compile(model, backend=backend, fullgraph=True)


def last() -> Any:
    """What the newest compile made of its graph."""
    (record,) = fxfuse.reports()[-1].reuse
    return record


def copies() -> list[int]:
    """How often each repeated region is called, most first."""
    return sorted((region.copies for region in last().repeated), reverse=True)
