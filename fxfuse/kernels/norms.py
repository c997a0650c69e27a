"""Implementations of `rms_norm` and `add_rms_norm`: plain PyTorch, which the inner compiler fuses, and Triton."""

from __future__ import annotations

from typing import Any

import torch

from fxfuse.kernels.common import TRITON, is_contiguous, op_operands
from fxfuse.kernels.facts import SiteFacts
from fxfuse.kernels.registry import kernel

SCALED = ("early", "late", "offset")
"""The variants that every pattern with an RMSNorm has; `rms_norm` has more."""


def normed(x: Any, weight: Any, eps: Any, norm: str) -> Any:
    """RMSNorm of ``x`` [..., hidden] in fp32, rounded where the variant rounds."""
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    if norm == "early":
        return weight * h.to(x.dtype)
    if norm == "late":
        return (weight * h).to(x.dtype)
    return (h * (1.0 + weight.float())).to(x.dtype)


@kernel("rms_norm", name="plain", backward="autograd", default=True)
def plain_rms_norm(x: Any, weight: Any, wide: Any, *, eps: Any, norm: str) -> Any:
    """The reference's operations in the reference's order."""
    if norm in SCALED:
        return normed(x, weight, eps, norm)
    h = wide if norm == "narrowed" else x.float()
    factor = torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    if norm == "narrowed":
        return weight * (h * factor).to(weight.dtype)
    return (h * factor).to(x.dtype) if norm == "bare" else x * factor.to(x.dtype)


@kernel("add_rms_norm", name="plain", backward="autograd", default=True)
def plain_add_rms_norm(x: Any, residual: Any, weight: Any, *, eps: Any, norm: str) -> Any:
    """The reference's operations in the reference's order."""
    total = x + residual
    return total, normed(total, weight, eps, norm)


def _contiguous(facts: SiteFacts) -> str | None:
    """Eager's result lies as its input does, and the op's is contiguous; so the input has to be."""
    for name in ("x", "residual"):
        for tensor in facts.operands.get(name, ()):
            if not is_contiguous(tensor):
                return f"needs {name} contiguous; the site has it with strides {tensor.stride()}"
    return op_operands(facts)


CONTIGUOUS: dict[str, Any] = {**TRITON, "when": _contiguous}


def _rms_norm_op() -> Any:
    from fxfuse.kernels.triton.rms_norm import op  # imports Triton, so not before it is needed

    return op()


@kernel(
    "rms_norm", name="triton", op=_rms_norm_op, variants={"norm": {"early", "late", "offset", "bare"}}, **CONTIGUOUS
)
def triton_rms_norm(x: Any, weight: Any, *, eps: float, norm: str) -> Any:
    """One pass over each row (kernels/triton/rms_norm.py)."""
    return _rms_norm_op()(x, weight, eps, "none" if norm == "bare" else norm)


def _add_rms_norm_op() -> Any:
    from fxfuse.kernels.triton.rms_norm import add_op

    return add_op()


@kernel("add_rms_norm", name="triton", op=_add_rms_norm_op, **CONTIGUOUS)
def triton_add_rms_norm(x: Any, residual: Any, weight: Any, *, eps: float, norm: str) -> Any:
    """The sum is formed, stored and normalised in one pass over each row (kernels/triton/rms_norm.py)."""
    results = _add_rms_norm_op()(x, residual, weight, eps, norm)  # in a graph one node, which does not iterate
    return results[0], results[1]
