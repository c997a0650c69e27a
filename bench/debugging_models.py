"""Tiny decoders in the situations of docs/debugging.md. Each block is Llama's but for one thing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN, INNER, LAYERS = 16, 32, 6


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))
        self.eps: float | Tensor = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * h.to(x.dtype)


class TensorEps(Norm):
    def __init__(self) -> None:
        super().__init__()
        del self.eps
        self.register_buffer("eps", torch.tensor(1e-6))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(HIDDEN, INNER, bias=False), nn.Linear(HIDDEN, INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = Norm(), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Eps(Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.norm = TensorEps()


class Router(Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        scores = self.router(h).softmax(-1)
        return x + self.mlp(h) * scores[..., :1]


class PostNorm(Blocks):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm(torch.tanh(x))
        return x + self.mlp(x)


class Adapted(nn.Linear):
    """A projection with an adapter that is not merged, as peft makes it."""

    def __init__(self) -> None:
        super().__init__(HIDDEN, INNER, bias=False)
        self.lora_a, self.lora_b = nn.Linear(HIDDEN, 2, bias=False), nn.Linear(2, INNER, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.lora_b(self.lora_a(x)) * 2.0


class Lora(Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.mlp.gate = Adapted()


class Decoder(nn.Module):
    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def batch() -> Tensor:
    """An input: [2, 5, HIDDEN]."""
    return torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(0))
