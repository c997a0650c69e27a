"""What kernels of several patterns require alike."""

from __future__ import annotations

import os
from typing import Any

import torch

from fxfuse.compat import statically_known_true
from fxfuse.kernels.facts import SiteFacts
from fxfuse.view.values import same_shape

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # then Triton kernels run on CPU tensors
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def op_operands(facts: SiteFacts) -> str | None:
    """Why fxfuse's ops cannot take a site's operands, or None.

    ``eps`` is a number, and none that is computed in the graph. The scale of a norm and the residual that precedes one
    have a dtype of their own; every other operand has the input's.
    """
    if "eps" in facts.symbolic_scalars:
        return "needs a literal eps; the site's is symbolic"
    for name, tensors in facts.operands.items():
        mixed = name == "weight" or (name == "residual" and "down" not in facts.present)
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            if dtype not in DTYPES if mixed else dtype != facts.dtype:
                wanted = "bfloat16, float16 or float32" if mixed else _name(facts.dtype)
                return f"needs {name} in {wanted}; the site has it in {_name(dtype)}"
    if "residual" in facts.operands:
        (x,), (residual,) = facts.operands["x"], facts.operands["residual"]
        if not same_shape(x.shape[:-1], residual.shape[:-1]):
            shapes = f"x {tuple(x.shape)} and residual {tuple(residual.shape)}"
            return f"needs x and residual of the same leading sizes; the site has {shapes}"
    return None


def is_contiguous(tensor: torch.Tensor) -> bool:
    """Whether a tensor, of whatever symbolic sizes, is known to be contiguous; no guard is added to find out."""
    expected: Any = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        if not (statically_known_true(size == 1) or statically_known_true(stride == expected)):
            return False
        expected = expected * size
    return True


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


TRITON: dict[str, Any] = {
    "device": ("cpu",) if INTERPRETED else ("cuda",),
    "capability": None if INTERPRETED else (8, 0),
    "dtypes": DTYPES,
    "triton": (3, 6),
    "when": op_operands,
}
