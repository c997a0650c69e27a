"""Errors in units in the last place, counted: what shows whether a kernel rounds once too often or is plainly wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_LARGEST = 1 << 16


def histogram(result: Tensor, exact: Tensor) -> dict[str, int]:
    """How many elements are 0 (correctly rounded), 1, 2-3, 4-7, ... units in the last place of ``result.dtype`` off.

    Args:
        exact: the same in float64. Elements that are not finite count only where the two differ, as the largest.
    """
    if not result.is_floating_point() or result.dtype == torch.float64 or not result.numel():
        return {}
    info = torch.finfo(result.dtype)
    wide, exact = result.detach().double(), exact.detach().double()
    spacing = (torch.frexp(exact.abs().clamp(min=info.smallest_normal)).exponent - 1).double().exp2() * info.eps
    off = ((wide - exact).abs() / spacing).round()
    off = torch.where((wide == exact) | (wide.isnan() & exact.isnan()), torch.zeros_like(off), off)
    off = off.nan_to_num(nan=_LARGEST, posinf=_LARGEST).clamp(max=_LARGEST)
    levels = torch.where(off >= 1, torch.floor(torch.log2(off.clamp(min=1.0))) + 1, torch.zeros_like(off)).long()
    counts = torch.bincount(levels.flatten()).tolist()
    return {_label(level): count for level, count in enumerate(counts) if count}


def _label(level: int) -> str:
    if level < 2:
        return str(level)
    low = 1 << (level - 1)
    return f"{low}-{2 * low - 1}" if low < _LARGEST else f">={_LARGEST}"


def added(histograms: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Several as one, smallest errors first."""
    total: dict[str, int] = {}
    for one in histograms:
        for label, count in one.items():
            total[label] = total.get(label, 0) + count
    return dict(sorted(total.items(), key=lambda pair: int(pair[0].lstrip(">=").partition("-")[0])))
