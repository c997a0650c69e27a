"""What the hand-written models share: a decoder that hands tokens to blocks, and one attention without projections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIM, INNER, HEADS, LAYERS, VOCAB = 32, 56, 4, 2, 61


@dataclass(frozen=True)
class Style:
    """One way to write a transformer.

    Attributes:
        build: a model of ``LAYERS`` blocks, from tokens to logits.
        expect: pattern -> sites.
        bf16: what differs in bf16, where a spelling rounds in between and is another function.
        mutants: one edit each, and what is left of the sites then.
    """

    name: str
    build: Callable[[], nn.Module]
    expect: Mapping[str, int]
    mutants: Mapping[str, tuple[Callable[[], nn.Module], Mapping[str, int]]] = field(default_factory=dict)
    bf16: Mapping[str, int] = field(default_factory=dict)


class Decoder(nn.Module):
    """Embedding, blocks, a last norm, a head."""

    def __init__(self, block: Callable[[], nn.Module], norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, DIM)
        self.blocks = nn.ModuleList(block() for _ in range(LAYERS))
        self.norm = norm()
        self.head = nn.Linear(DIM, VOCAB, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of [batch, length, heads, head_dim] operands, back as [batch, length, width]."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(1, 2).flatten(2)


def heads(x: Tensor) -> Tensor:
    return x.view(x.shape[0], x.shape[1], HEADS, -1)


def linear(out: int, inner: int = DIM, bias: bool = False) -> nn.Linear:
    return nn.Linear(inner, out, bias=bias)


def ones(dim: int = DIM) -> nn.Parameter:
    """A norm's scale, away from one, so that it matters."""
    return nn.Parameter(torch.rand(dim) + 0.5)
