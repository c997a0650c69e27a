"""Rotary position embedding of one tensor, query or key.

``pairs`` says which entries turn together and how cos and sin are given: full tables for halves or neighbours, one
entry for each pair (``*_angles``), or complex numbers (Llama 4, DeepSeek V2). A partial rotation is a site on the part
that turns, and one in fp32 a site on what was cast. nanochat turns the other way, which is another function.
"""

from __future__ import annotations

from typing import Any

import torch

from fxfuse import Dim, Input, one_of, pattern
from fxfuse_patterns.rotations import (
    adjacent_turned,
    by_angle,
    by_complex,
    by_table,
    half_turned,
    halves,
    halves_joined,
    neighbours,
    neighbours_joined,
)

HALF = Dim("half of a head")


@pattern("rope")
def rope(
    x: Any = Input(..., 2 * HALF),
    cos: Any = Input(...),
    sin: Any = Input(...),
    turns: Any = Input(..., dtype=torch.complex64),
) -> Any:
    return one_of(
        "pairs",
        halves=lambda: by_table(x, half_turned, cos, sin, "halves"),
        adjacent=lambda: by_table(x, adjacent_turned, cos, sin, "adjacent"),
        halves_angles=lambda: by_angle(x, halves, halves_joined, cos, sin),
        adjacent_angles=lambda: by_angle(x, neighbours, neighbours_joined, cos, sin),
        complex=lambda: by_complex(x, turns),
    )
