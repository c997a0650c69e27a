"""What kernels of several patterns require alike."""

from __future__ import annotations

import os
from typing import Any

import torch

from fxfuse.kernels.registry import SiteFacts

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # then Triton kernels run on CPU tensors

TRITON: dict[str, Any] = {
    "device": ("cpu",) if INTERPRETED else ("cuda",),
    "capability": None if INTERPRETED else (8, 0),
    "dtypes": (torch.bfloat16, torch.float16, torch.float32),
}


def literal_eps(facts: SiteFacts) -> str | None:
    """An op takes a number, and none that is computed in the graph."""
    return "needs a literal eps; the site's is symbolic" if "eps" in facts.symbolic_scalars else None
