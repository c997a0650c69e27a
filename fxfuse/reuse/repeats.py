"""Stretches of a sequence that repeat, one copy after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_PERIODS = 48
"""How many distances between equal items are tried, the most frequent first."""


@dataclass(frozen=True)
class Run:
    """``[start, end)`` repeats itself after every ``period`` items."""

    start: int
    end: int
    period: int

    @property
    def copies(self) -> int:
        return (self.end - self.start) // self.period


def runs(items: Sequence[int], start: int, end: int, least: int) -> list[Run]:
    """The runs of at least two copies within ``[start, end)``; of a period below ``least`` items, those of several
    such periods, too."""
    found = []
    for period in _periods(items, start, end, least):
        begin = start
        for i in range(start, end - period + 1):
            if i < end - period and items[i] == items[i + period]:
                continue
            if i - begin >= period:
                found.append(Run(begin, i + period, period))
            begin = i + 1
    return found


def _periods(items: Sequence[int], start: int, end: int, least: int) -> list[int]:
    """Distances between an item and the next that is equal, most frequent first."""
    last: dict[int, int] = {}
    counts = Counter(items[start:end])
    gaps: dict[int, float] = {}
    for i in range(start, end):
        item = items[i]
        if item in last:
            gap = i - last[item]
            gaps[gap] = gaps.get(gap, 0.0) + 1 / counts[item]  # a rare item tells more
        last[item] = i
    for gap in [gap for gap in gaps if gap < least]:
        several = gap * -(-least // gap)
        gaps[several] = gaps.get(several, 0.0) + gaps[gap]
    fitting = (gap for gap in gaps if gap <= (end - start) // 2)
    return sorted(fitting, key=lambda gap: (-gaps[gap], gap))[:_PERIODS]
