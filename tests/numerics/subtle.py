"""Small patterns with kernels that are subtly wrong, each beside a right one that differs in one place."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxfuse
from fxfuse import Dim, Input, Param, Scalar

D, N = Dim("hidden"), Dim("intermediate")
HIDDEN, INNER = 32, 48


# --- a norm -----------------------------------------------------------------------------------------------------------


@fxfuse.pattern("tried_norm")
def tried_norm(x: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float)) -> Any:
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return (weight * h).to(x.dtype)


@fxfuse.kernel(tried_norm, name="right")
def right_norm(x: Any, weight: Any, eps: Any) -> Any:
    h = x.float()
    return (h * weight * torch.rsqrt((h * h).mean(-1, keepdim=True) + eps)).to(x.dtype)


@fxfuse.kernel(tried_norm, name="ignores_eps")
def ignores_eps(x: Any, weight: Any, eps: Any) -> Any:
    h = x.float()
    return (h * weight * torch.rsqrt((h * h).mean(-1, keepdim=True) + 0.0 * eps)).to(x.dtype)


@fxfuse.kernel(tried_norm, name="clips")
def clips(x: Any, weight: Any, eps: Any) -> Any:
    """Right but for outlier channels."""
    return right_norm(x.clamp(-30.0, 30.0), weight, eps)


@torch.library.custom_op("fxfuse_tests::fails_when_run", mutates_args=())
def fails_when_run(x: Tensor) -> Tensor:
    raise RuntimeError("no kernel image is available")


@fails_when_run.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@fxfuse.kernel(tried_norm, name="fails")
def fails(x: Any, weight: Any, eps: Any) -> Any:
    return fails_when_run(right_norm(x, weight, eps))


class Norm(nn.Module):
    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(HIDDEN) + 0.5)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.weight * h).to(x.dtype)


# --- a norm that subtracts the mean, in a precision that matters ------------------------------------------------------


@fxfuse.pattern("tried_centred_norm")
def tried_centred_norm(x: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float)) -> Any:
    h = x.float()
    h = h - h.mean(-1, keepdim=True)
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return (weight * h).to(x.dtype)


def _centred(x: Any, weight: Any, eps: Any, rounded: bool) -> Any:
    h = x.float()
    mean = h.mean(-1, keepdim=True)
    h = h - (mean.to(x.dtype).float() if rounded else mean)
    return (weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps))).to(x.dtype)


@fxfuse.kernel(tried_centred_norm, name="right")
def right_centred(x: Any, weight: Any, eps: Any) -> Any:
    return _centred(x, weight, eps, rounded=False)


@fxfuse.kernel(tried_centred_norm, name="rounds_the_mean")
def rounds_the_mean(x: Any, weight: Any, eps: Any) -> Any:
    return _centred(x, weight, eps, rounded=True)


class CentredNorm(Norm):
    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        h = h - h.mean(-1, keepdim=True)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.weight * h).to(x.dtype)


@fxfuse.pattern("tried_rounded")
def tried_rounded(x: Any = Input(..., D), weight: Any = Param(D)) -> Any:
    h = x.to(torch.bfloat16).float()
    return weight * torch.tanh(h - h.mean(-1, keepdim=True))


@fxfuse.kernel(tried_rounded, name="right")
def right_rounded(x: Any, weight: Any) -> Any:
    h = x.to(torch.bfloat16).float()
    return torch.tanh(h - h.mean(-1, keepdim=True)) * weight


class Rounded(Norm):
    def forward(self, x: Tensor) -> Tensor:
        h = x.to(torch.bfloat16).float()
        return self.weight * torch.tanh(h - h.mean(-1, keepdim=True))


# --- a gated MLP ------------------------------------------------------------------------------------------------------


@fxfuse.pattern("tried_mlp")
def tried_mlp(x: Any = Input(..., D), gate: Any = Param(N, D), up: Any = Param(N, D), down: Any = Param(D, N)) -> Any:
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def _mlp(x: Any, gate: Any, up: Any, down: Any) -> Any:
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


@fxfuse.kernel(tried_mlp, name="right")
def right_mlp(x: Any, gate: Any, up: Any, down: Any) -> Any:
    return torch.matmul(torch.matmul(x, up.t()) * F.silu(torch.matmul(x, gate.t())), down.t())


@fxfuse.kernel(tried_mlp, name="swaps")
def swaps(x: Any, gate: Any, up: Any, down: Any) -> Any:
    return _mlp(x, up, gate, down)


@fxfuse.kernel(tried_mlp, name="swaps_with_backward", backward="autograd")
def swaps_with_backward(x: Any, gate: Any, up: Any, down: Any) -> Any:
    return _mlp(x, up, gate, down)


@fxfuse.kernel(tried_mlp, name="tf32")
def tf32(x: Any, gate: Any, up: Any, down: Any) -> Any:
    """Operands with ten bits of mantissa, as tensor cores take them where nobody forbids it."""

    def cut(t: Any) -> Any:
        return torch.bitwise_and(t.view(torch.int32), ~0x1FFF).view(torch.float32)

    return F.linear(cut(F.silu(F.linear(cut(x), cut(gate))) * F.linear(cut(x), cut(up))), cut(down))


@fxfuse.kernel(tried_mlp, name="stacked", derive={"rows": fxfuse.stack("gate", "up")})
def stacked(x: Any, rows: Any, down: Any) -> Any:
    gate, up = F.linear(x, rows).chunk(2, -1)
    return F.linear(F.silu(gate) * up, down)


@fxfuse.kernel(tried_mlp, name="stacked_swapped", derive={"rows": fxfuse.stack("up", "gate")})
def stacked_swapped(x: Any, rows: Any, down: Any) -> Any:
    return stacked(x, rows, down)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(HIDDEN, INNER, bias=False), nn.Linear(HIDDEN, INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


# --- two results ------------------------------------------------------------------------------------------------------


@fxfuse.pattern("tried_add_norm")
def tried_add_norm(
    x: Any = Input(..., D), residual: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float)
) -> Any:
    total = x + residual
    h = total.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return total, (weight * h).to(x.dtype)


@fxfuse.kernel(tried_add_norm, name="right")
def right_add_norm(x: Any, residual: Any, weight: Any, eps: Any) -> Any:
    total = residual + x
    return total, right_norm(total, weight, eps)


@fxfuse.kernel(tried_add_norm, name="norms_x")
def norms_x(x: Any, residual: Any, weight: Any, eps: Any) -> Any:
    """Wrong in the second result alone."""
    return x + residual, right_norm(x, weight, eps)


@fxfuse.kernel(tried_add_norm, name="forgets_the_residual")
def forgets_the_residual(x: Any, residual: Any, weight: Any, eps: Any) -> Any:
    """Wrong in the first result alone."""
    return x + residual * 0.99, right_norm(x + residual, weight, eps)


class AddNorm(Norm):
    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        h = total.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return total, (self.weight * h).to(x.dtype)


def rows(*, dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0) -> Tensor:
    """An input of [4, 6, HIDDEN]."""
    return (torch.randn(4, 6, HIDDEN, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def options(pattern: Any, kernel: str, **more: Any) -> dict[str, Any]:
    return {"patterns": [pattern], "kernels": {pattern.name: kernel}, "on_error": "raise", **more}
