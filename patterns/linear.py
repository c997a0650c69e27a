"""A linear by itself: ``x @ weight.t() + bias``, with a parameter as weight.

It spans the least of all patterns, so it gets what the others leave: attention's output projection, the vocabulary's,
and, where no norm stands before them, all others. What it is for is where its weight lives, and in what layout.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from fxfuse import Dim, Input, Param, pattern

D, OUT = Dim("in"), Dim("out")


@pattern("linear")
def linear(x: Any = Input(..., D), weight: Any = Param(OUT, D), bias: Any = Param(OUT, optional=True)) -> Any:
    return F.linear(x, weight, bias)
