"""The perturbations: what is changed in the model, and how many of its blocks are rightful sites then."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.matchers.blocks import EPS, INTER, Block, Blocks, Body, early, early_norm, late, mlp_of


@dataclass(frozen=True)
class Case:
    """One row: blocks, what the pattern was given for, and which blocks are sites.

    Attributes:
        bodies: what each block computes.
        rightful: for each block whether it is the pattern's function.
        dtype: of the graph.
        given: the dtype and rank that a pattern is traced with, where the matcher traces one with examples.
        norms: the variants that the pattern declares.
        free: blocks beyond the rightful may be found where the rewritten graph still computes the same.
    """

    name: str
    bodies: tuple[Body, ...]
    rightful: tuple[bool, ...] = (True,) * 4
    dtype: torch.dtype = torch.float32
    given: torch.dtype | None = None
    rank: int = 3
    given_rank: int = 3
    norms: tuple[str, ...] = ("early",)
    eps: tuple[float, ...] = (EPS,) * 4
    bias: bool = False
    dynamic: bool = False
    free: bool = False

    @property
    def sites(self) -> int:
        return sum(self.rightful)

    @property
    def pattern_dtype(self) -> torch.dtype:
        return self.given or self.dtype

    def model(self) -> Blocks:
        made = [
            Block(body, self.dtype, bias=self.bias, eps=eps, seed=i)
            for i, (body, eps) in enumerate(zip(self.bodies, self.eps, strict=True))
        ]
        return Blocks(made).eval()

    def inputs(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(99)
        shape = (2, 3, 8) if self.rank == 3 else (6, 8)
        return [torch.randn(*shape, generator=generator).to(self.dtype) for _ in self.bodies]


# --- commuted operands ------------------------------------------------------------------------------------------------


def _commuted_scale(m: Block, x: Tensor) -> Tensor:
    h = x.to(torch.float32)
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + m.eps)
    return mlp_of(m, h.to(x.dtype) * m.weight)


def _commuted_rsqrt(m: Block, x: Tensor) -> Tensor:
    h = x.to(torch.float32)
    h = torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + m.eps) * h
    return mlp_of(m, m.weight * h.to(x.dtype))


def _commuted_gate(m: Block, x: Tensor) -> Tensor:
    h = early_norm(x, m.weight, m.eps)
    return F.linear(F.linear(h, m.up) * F.silu(F.linear(h, m.gate)), m.down)


def _commuted_eps(m: Block, x: Tensor) -> Tensor:
    h = x.to(torch.float32)
    h = h * torch.rsqrt(m.eps + h.pow(2).mean(-1, keepdim=True))
    return mlp_of(m, m.weight * h.to(x.dtype))


# --- other spellings --------------------------------------------------------------------------------------------------


def _methods(m: Block, x: Tensor) -> Tensor:
    h = x.float()
    h = h.mul(h.pow(2).mean(-1, keepdim=True).add(m.eps).rsqrt())
    h = m.weight.mul(h.to(x.dtype))
    return F.linear(F.silu(F.linear(h, m.gate)).mul(F.linear(h, m.up)), m.down)


def _functions(m: Block, x: Tensor) -> Tensor:
    h = x.type(torch.float32)
    h = torch.mul(h, torch.rsqrt(torch.add(torch.mean(torch.pow(h, 2), -1, keepdim=True), m.eps)))
    h = torch.mul(m.weight, h.type(x.dtype))
    return F.linear(torch.mul(F.silu(F.linear(h, m.gate)), F.linear(h, m.up)), m.down)


def _operators(m: Block, x: Tensor) -> Tensor:
    h = x.to(torch.float32)
    h = h * ((h**2).mean(-1, keepdim=True) + m.eps).rsqrt()
    h = operator.mul(m.weight, h.to(x.dtype))
    return (F.silu(h @ m.gate.t()) * (h @ m.up.t())) @ m.down.t()


def _long_hand(m: Block, x: Tensor) -> Tensor:
    h = x.to(torch.float32)
    h = h * (1 / torch.sqrt(torch.square(h).mean(dim=-1, keepdim=True) + m.eps))
    h = m.weight * h.to(x)
    gate = torch.matmul(h, m.gate.T)
    return torch.matmul(gate * torch.sigmoid(gate) * torch.matmul(h, m.up.T), m.down.T)


def _keywords(m: Block, x: Tensor) -> Tensor:
    h = x.to(dtype=torch.float32)
    square = torch.pow(input=h, exponent=2)
    h = h * torch.rsqrt(input=torch.mean(input=square, dim=-1, keepdim=True) + m.eps)
    h = m.weight * h.to(dtype=x.dtype)
    gate = F.silu(input=F.linear(input=h, weight=m.gate, bias=None), inplace=False)
    return F.linear(input=gate * F.linear(input=h, weight=m.up), weight=m.down)


def _some_keywords(m: Block, x: Tensor) -> Tensor:
    h = x.to(torch.float32, copy=False)
    h = h * torch.rsqrt(h.pow(exponent=2).mean(dim=(-1,), keepdim=True) + m.eps)
    h = m.weight * h.to(x.dtype, non_blocking=False)
    gate = F.silu(F.linear(h, m.gate, bias=None), inplace=False)
    return F.linear(gate * F.linear(h, weight=m.up), m.down, None)


def _squares(m: Block, x: Tensor) -> Tensor:
    h = x.to(torch.float32)
    h = h * torch.rsqrt((h * h).mean(-1, keepdim=True) + m.eps)
    return mlp_of(m, m.weight * h.to(x.dtype))


# --- identities in between --------------------------------------------------------------------------------------------


def _identity_view(m: Block, x: Tensor) -> Tensor:
    h = early_norm(x, m.weight, m.eps)
    return mlp_of(m, h.view(h.shape))


def _identity_contiguous(m: Block, x: Tensor) -> Tensor:
    return mlp_of(m, early_norm(x, m.weight, m.eps).contiguous())


def _identity_reshape(m: Block, x: Tensor) -> Tensor:
    h = early_norm(x, m.weight, m.eps)
    gate = F.silu(F.linear(h, m.gate)).reshape(*h.shape[:-1], INTER)
    return F.linear(gate * F.linear(h, m.up), m.down)


def _identity_cast(m: Block, x: Tensor) -> Tensor:
    h = early_norm(x, m.weight, m.eps)
    return mlp_of(m, h.to(h.dtype))


# --- blocks that are no sites -----------------------------------------------------------------------------------------


def _norm_read(m: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    h = early_norm(x, m.weight, m.eps)
    return mlp_of(m, h), h.sum(-1)


def _rsqrt_read(m: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    h = x.to(torch.float32)
    r = torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + m.eps)
    return mlp_of(m, m.weight * (h * r).to(x.dtype)), r.neg()


def _cube(m: Block, x: Tensor) -> Tensor:
    h = x.to(torch.float32)
    h = h * torch.rsqrt(h.abs().pow(3).mean(-1, keepdim=True) + m.eps)
    return mlp_of(m, m.weight * h.to(x.dtype))


def _other_power(m: Block, x: Tensor) -> Tensor:
    h = x.to(torch.float32)
    h = h * torch.rsqrt(h.pow(4).mean(-1, keepdim=True) + m.eps)
    return mlp_of(m, m.weight * h.to(x.dtype))


def _other_dim(m: Block, x: Tensor) -> Tensor:
    h = x.to(torch.float32)
    h = h * torch.rsqrt(h.pow(2).mean(-2, keepdim=True) + m.eps)
    return mlp_of(m, m.weight * h.to(x.dtype))


def _norm_written(m: Block, x: Tensor) -> Tensor:
    h = early_norm(x, m.weight, m.eps)
    gate = F.linear(h, m.gate)
    h.mul_(2)
    return F.linear(F.silu(gate) * F.linear(h, m.up), m.down)


def _input_written(m: Block, x: Tensor) -> Tensor:
    """The pattern's function of what ``x`` was: a site wherever the graph is functional, and a trap where not."""
    h = early_norm(x, m.weight, m.eps)
    x.add_(1)  # not a factor, which a norm would not notice
    return mlp_of(m, h)


def _all(body: Body) -> tuple[Body, ...]:
    return (body,) * 4


NONE = (False,) * 4
BF16, FP32 = torch.bfloat16, torch.float32

CASES: Sequence[Case] = (
    Case("as written", _all(early)),
    Case("eps differs from layer to layer", _all(early), eps=(1e-6, 1e-5, 1e-7, 3e-6)),
    Case("commuted mul and add", (_commuted_scale, _commuted_rsqrt, _commuted_gate, _commuted_eps)),
    Case("fp32 graph, pattern given in bf16", _all(early), given=BF16),
    Case("bf16 graph, pattern given in fp32", _all(early), dtype=BF16, given=FP32),
    Case("extra reader in 2 of 4 layers", (early, _norm_read, early, _rsqrt_read), rightful=(True, False, True, False)),
    Case("method, function, operator, long hand", (_methods, _functions, _operators, _long_hand)),
    Case("keyword arguments", (_keywords, _some_keywords, _keywords, _some_keywords)),
    Case("x*x for pow", _all(_squares)),
    Case("late cast, pattern has early (bf16)", _all(late), dtype=BF16, rightful=NONE),
    Case("late cast, pattern has both (bf16)", (late, early, late, early), dtype=BF16, norms=("early", "late")),
    Case("dynamic shapes, 3-D", _all(early), dynamic=True),
    Case("dynamic shapes, 2-D", _all(early), dynamic=True, rank=2, given_rank=2),
    Case("bias", _all(early), bias=True),
    Case("2-D graph, pattern given in 3-D", _all(early), rank=2),
    Case("3-D graph, pattern given in 2-D", _all(early), given_rank=2),
    Case(
        "identity view, contiguous, reshape, cast",
        (_identity_view, _identity_contiguous, _identity_reshape, _identity_cast),
    ),
)
"""The twelve of the comparison, some in two directions, after the model as it is."""

OTHERS: Sequence[Case] = (
    Case("another power", (_cube, _other_power, _cube, _other_power), rightful=NONE),
    Case("mean over another dim", _all(_other_dim), rightful=NONE),
    Case("the norm is written before up reads it", _all(_norm_written), rightful=NONE),
    Case("x is written after the norm read it", _all(_input_written), rightful=NONE, free=True),
)
"""Other functions, which must not be found."""
