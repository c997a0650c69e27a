"""Few ways that stand for all: every label and operand, or every pair of them, is in one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from fxfuse.checking.ways import Way


def covering(ways: Sequence[Way], strength: int) -> list[Way]:
    """Ways in which every combination of ``strength`` features occurs that occurs at all; greedy, deterministic."""
    combinations = [set(itertools.combinations(sorted(_features(way)), strength)) for way in ways]
    open_: set[Any] = set().union(*combinations)
    chosen = []
    while open_:
        best = max(range(len(ways)), key=lambda i: (len(combinations[i] & open_), -i))
        open_ -= combinations[best]
        chosen.append(ways[best])
    return chosen or list(ways[:1])


def _features(way: Way) -> set[str]:
    labels = {f"{name}={label}" for name, label in way.variant.items()}
    absent = {f"-{name}" for name in way.pattern.captures if name not in way.tensors}
    return {*labels, *(f"+{name}" for name in way.given), *absent, f"siblings={way.siblings}"}
