"""The replacement that every peer is given: one op that computes the pattern's function, in eager's operations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.matchers.blocks import NORMS, gated_mlp

NAME = "fxfuse_bench::rms_norm_gated_mlp"


@functools.cache
def fused_op() -> Callable[..., Tensor]:
    """The op, defined when first asked for: a library of torch is process-wide."""

    @torch.library.custom_op(NAME, mutates_args=())
    def block(
        x: Tensor,
        weight: Tensor,
        eps: float,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        gate_bias: Tensor | None,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        norm: str,
    ) -> Tensor:
        return gated_mlp(NORMS[norm](x, weight, eps), gate, up, down, gate_bias, up_bias, down_bias)

    @block.register_fake
    def _(x: Tensor, weight: Tensor, eps: float, gate: Tensor, up: Tensor, down: Tensor, *_: Any) -> Tensor:
        return x.new_empty((*x.shape[:-1], down.shape[0]))

    op: Any = torch.ops.fxfuse_bench.rms_norm_gated_mlp.default
    return op
