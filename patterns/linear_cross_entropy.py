"""A language model's last projection and its loss, whose logits nothing else reads.

The logits of every token at once are the largest tensor of a training step. ``logits`` says what is done to them:
nothing, a factor (Cohere), a divisor (Granite), or a soft cap ``cap * tanh(l / cap)`` (Gemma); ``precision``, whether
the loss is taken in fp32; ``rows``, whether a reshape makes rows of the logits, or they are rows of ``flat`` already.
The target has its shift: that is done to the labels. Where the logits are returned, too, there is no site.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fxfuse import Dim, Input, Param, Scalar, one_of, pattern

D, V, ROWS = Dim("hidden"), Dim("vocabulary"), Dim("rows")


@pattern("linear_cross_entropy")
def linear_cross_entropy(
    x: Any = Input(..., D),
    flat: Any = Input(ROWS, D),
    weight: Any = Param(V, D),
    bias: Any = Param(V, optional=True),
    target: Any = Input(ROWS, dtype=torch.int64),
    ignore_index: Any = Scalar(int),
    reduction: Any = Scalar(str),
    factor: Any = Scalar(float),
    cap: Any = Scalar(float),
) -> Any:
    logits = one_of("rows", flattened=lambda: F.linear(x, weight, bias), given=lambda: F.linear(flat, weight, bias))
    logits = one_of(
        "logits",
        plain=lambda: logits,
        multiplied=lambda: logits * factor,
        divided=lambda: logits / factor,
        capped=lambda: torch.tanh(logits / cap) * cap,
    )
    logits = one_of("precision", fp32=lambda: logits.float(), as_given=lambda: logits)
    logits = one_of("rows", flattened=lambda: logits.flatten(0, -2), given=lambda: logits)
    return F.cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction)
