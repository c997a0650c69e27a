"""Implementations of `gate_add_norm`: plain PyTorch, which the inner compiler fuses, and one Triton kernel."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F

from fxfuse import kernel
from fxfuse_forecasting.gate_add_norm import gate_add_norm

LARGEST = 8_192
"""Elements of a row that the Triton kernel keeps in registers."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # then Triton kernels run on CPU tensors


@kernel(gate_add_norm, name="plain", backward="autograd", default=True)
def plain(packed: Any, skip: Any, weight: Any, bias: Any, *, eps: Any, gate: str) -> Any:
    """The reference's operations in the reference's order."""
    if gate == "glu":
        gated = F.glu(packed, dim=-1)
    else:
        value, opening = packed.chunk(2, -1)
        gated = (torch.tanh(value) if gate == "gtu" else value) * torch.sigmoid(opening)
    return F.layer_norm(skip + gated, weight.shape, weight, bias, eps)


def _op() -> Any:
    from fxfuse_forecasting.triton.gate_add_norm import op  # imports Triton, so not before it is needed

    return op()


def _fits(facts: Any) -> str | None:
    if "eps" in facts.symbolic_scalars:
        return "needs a literal eps; the site's is symbolic"
    n = facts.sizes["n"]
    return None if n <= LARGEST else f"needs at most {LARGEST} elements a row; the site has {n}"


@kernel(gate_add_norm, name="triton", op=_op, device="cpu" if INTERPRETED else "cuda", when=_fits)
def one_pass(packed: Any, skip: Any, weight: Any, bias: Any, *, eps: float, gate: str) -> Any:
    """One program a row: each element is read once and written once, all in fp32 between."""
    return _op()(packed, skip, weight, bias, eps, gate)
