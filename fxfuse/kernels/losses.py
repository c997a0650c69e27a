"""Implementations of `linear_cross_entropy`: torch's own function, and the logits of a few rows at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fxfuse.kernels.registry import SiteFacts, kernel

PATTERN = "linear_cross_entropy"
CHUNKS = 8
"""Parts that the rows are cut into; the logits of one part are alive at a time, where no gradient needs them."""


def _in_fp32(facts: SiteFacts) -> str | None:
    return None if facts.dtype is torch.float32 else "needs x in float32: torch takes the loss in the dtype of x"


if hasattr(F, "linear_cross_entropy"):

    @kernel(PATTERN, name="torch", variants={"logits": {"plain"}}, when=_in_fp32, backward="autograd", default=True)
    def by_torch(x: Any, flat: Any, weight: Any, bias: Any, target: Any, *, ignore_index: Any, reduction: Any) -> Any:
        """``F.linear_cross_entropy``, which torch makes faster or leaner from release to release."""
        rows = x.flatten(0, -2) if flat is None else flat
        given = {"ignore_index": ignore_index, "reduction": reduction}
        return F.linear_cross_entropy(rows, weight, target, linear_bias=bias, **given)


@kernel(PATTERN, name="chunked", variants={"precision": {"fp32"}}, backward="autograd")
def chunked(
    x: Any, flat: Any, weight: Any, bias: Any, target: Any,
    *, factor: Any, cap: Any, ignore_index: Any, reduction: Any, logits: str,
) -> Any:  # fmt: skip
    """The loss part by part: a part's logits are the only ones alive. By name only: not measured."""
    rows = x.flatten(0, -2) if flat is None else flat
    parts = 1 if reduction == "none" else CHUNKS  # each row's loss has to have the size that it has in the graph
    losses = []
    for part, wanted in zip(rows.tensor_split(parts), target.tensor_split(parts), strict=True):
        y = F.linear(part, weight, bias)
        if logits == "multiplied":
            y = y * factor
        elif logits == "divided":
            y = y / factor
        elif logits == "capped":
            y = torch.tanh(y / cap) * cap
        kept = "none" if reduction == "none" else "sum"
        losses.append(F.cross_entropy(y.float(), wanted, ignore_index=ignore_index, reduction=kept))
    if reduction == "none":
        return losses[0]
    total = sum(losses[1:], losses[0])
    return total if reduction == "sum" else total / (target != ignore_index).sum()
