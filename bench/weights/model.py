"""The model of the table: a decoder without its attention, one site of `rms_norm_gated_mlp` in each layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxfuse

PLACEMENTS: dict[str, dict[str, Any]] = {
    "separate": {"weights": "separate"},
    "share": {"weights": "share"},
    "copy": {"weights": "copy", "extra_memory": 1.0},
    "inline": {"weights": "inline"},
}
"""The options that give each placement."""

HIDDEN, INNER = 16, 32


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(HIDDEN) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * h.to(x.dtype)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, INNER, bias=False)
        self.up = nn.Linear(HIDDEN, INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = Norm()
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Decoder(nn.Module):
    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(seed))


def compiled(what: Any, placement: str, *, inner: str = "eager", **options: Any) -> Any:
    """A model or function, compiled with the options of a placement."""
    backend = fxfuse.Backend(**{"inner": inner, "on_error": "raise", **PLACEMENTS[placement], **options})
    return torch.compile(what, backend=backend)
