"""A pack with a kernel that is wrong in one variant, and a model that has a site of it: for docs/debugging.md."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxfuse
from fxfuse import Dim, Input, Param, one_of

D, N = Dim("hidden"), Dim("intermediate")
HIDDEN, INNER = 32, 48


@fxfuse.pattern("gated_product")
def gated_product(x: Any = Input(..., D), gate: Any = Param(N, D), up: Any = Param(N, D)) -> Any:
    g = F.linear(x, gate)
    return one_of("act", silu=lambda: F.silu(g), gelu=lambda: F.gelu(g)) * F.linear(x, up)


@fxfuse.kernel(gated_product, name="quick")
def quick(x: Any, gate: Any, up: Any, act: Any) -> Any:
    return F.silu(F.linear(x, gate)) * F.linear(x, up)  # whatever act says


OPTIONS: dict[str, Any] = {"patterns": [gated_product], "kernels": {"gated_product": "quick"}}


class Part(nn.Module):
    def __init__(self, act: Any) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(HIDDEN, INNER, bias=False), nn.Linear(HIDDEN, INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Part(F.gelu if i == 5 else F.silu) for i in range(8))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def model() -> Model:
    torch.manual_seed(0)
    return Model()


def batch() -> Tensor:
    return torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(0))
