"""Two blocks of the headline pattern, as a module with plain parameters, and how the tests compare."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

PATTERN = "rms_norm_gated_mlp"
HIDDEN, INTER = 8, 12


class Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.to(torch.float32)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * h.to(x.dtype)


class Block(nn.Module):
    def __init__(self, hidden: int, inter: int) -> None:
        super().__init__()
        self.norm = Norm(hidden)
        self.gate, self.up = nn.Linear(hidden, inter, bias=False), nn.Linear(hidden, inter, bias=False)
        self.down = nn.Linear(inter, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Net(nn.Module):
    """``layers`` blocks; ``between`` is called on the hidden states after each."""

    def __init__(
        self,
        layers: int = 2,
        dtype: torch.dtype = torch.float32,
        between: Callable[[torch.Tensor], torch.Tensor] | None = None,
        hidden: int = HIDDEN,
        inter: int = INTER,
    ) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.blocks = nn.ModuleList(Block(hidden, inter) for _ in range(layers)).to(dtype)
        self.between = between
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
            x = self.between(x) if self.between is not None else x
        return x


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*(shape or (2, 5, HIDDEN)), generator=torch.Generator().manual_seed(29)).to(dtype)


def options(**more: Any) -> dict[str, Any]:
    return {"patterns": [PATTERN], "kernels": {PATTERN: "plain"}, "on_error": "raise", **more}


def assert_as_exact(got: torch.Tensor, model: nn.Module, *args: torch.Tensor) -> None:
    """The result is as near to float64's as eager's is, by the contract's factor and floor, and close to eager's."""
    with torch.no_grad():
        eager = model(*args)
        exact = copy.deepcopy(model).double()(*[a.double() if a.is_floating_point() else a for a in args])
    assert (got.dtype, got.shape, got.stride()) == (eager.dtype, eager.shape, eager.stride())
    floor = 1e-6 if got.dtype is torch.float32 else 1e-3
    scale = exact.abs().max()
    allowed = 2 * (eager.double() - exact).abs().max() + floor * scale
    assert (got.double() - exact).abs().max() <= allowed
    tolerance = 1e-5 if got.dtype is torch.float32 else 2e-2
    torch.testing.assert_close(got, eager, rtol=tolerance, atol=tolerance)


def calls(gm: fx.GraphModule) -> list[str]:
    return [str(n.target) for n in gm.graph.nodes if n.op.startswith("call_")]


def text(gm: fx.GraphModule) -> str:
    """Everything of a graph that a reader of it could see."""
    return "\n".join(f"{n.format_node()} {sorted(n.meta)}" for n in gm.graph.nodes)
