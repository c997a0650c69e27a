"""Which measurement says something about a site: the one of the nearest machine, variant and shape, or none.

A row count of one is like no other. Others are alike within two powers of two, every other size within one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from fxfuse.machine import Machine
from fxfuse.results.record import Entry, Shape

ROWS_APART = 2
SIZES_APART = 1.0

Distance = tuple[float, float, float]


def nearest(entries: Iterable[Entry], shape: Shape, machine: Machine) -> Entry | None:
    """The nearest entry, the first of several; None where none is near enough."""
    best: Entry | None = None
    least: Distance | None = None
    for entry in entries:
        apart = distance(entry, shape, machine)
        if apart is not None and (least is None or apart < least):
            best, least = entry, apart
    return best


def distance(entry: Entry, shape: Shape, machine: Machine) -> Distance | None:
    """How far the entry is from what is asked: by machine first, then by variant, then by shape; None: too far."""
    had = entry.shape
    if (had.pattern, had.operands, had.dtype, had.inner) != (shape.pattern, shape.operands, shape.dtype, shape.inner):
        return None
    cards = _between_machines(entry.machine, machine)
    rows = abs(bucket(had.rows) - bucket(shape.rows))
    alone = (bucket(had.rows) == 0) != (bucket(shape.rows) == 0)
    sizes = _between_sizes(dict(had.sizes), dict(shape.sizes))
    if cards is None or sizes is None or alone or rows > ROWS_APART:
        return None
    labels = dict(shape.variant)
    if had.variant and labels.keys() != dict(had.variant).keys():
        return None
    return cards, sum(labels[name] != label for name, label in had.variant), rows + sizes


def bucket(rows: int) -> int:
    """The power of two that a row count is counted under: 0 for one row, 3 for five to eight."""
    return (max(rows, 1) - 1).bit_length()


def differs(entry: Entry, shape: Shape, machine: Machine) -> str:
    """In what the entry's measurement was another one than that which is asked for; empty where in nothing."""
    words = []
    if entry.machine != machine:
        words.append("the nearest card measured" if machine.device == "cuda" else "the nearest machine measured")
    if bucket(entry.shape.rows) != bucket(shape.rows) or entry.shape.sizes != shape.sizes:
        words.append("the nearest shape measured")
    labels = dict(shape.variant)
    others = [f"{name}={label}" for name, label in entry.shape.variant if labels[name] != label]
    if others:
        words.append(f"measured for {' '.join(others)}")
    return ", ".join(words)


def _between_machines(had: Machine, wanted: Machine) -> float | None:
    if had == wanted:
        return 0.0
    if (had.device, had.arch) != (wanted.device, wanted.arch):
        return None
    return 1.0 + _ratio(had.units, wanted.units) + _ratio(had.memory, wanted.memory)


def _between_sizes(had: dict[str, int], wanted: dict[str, int]) -> float | None:
    if had.keys() != wanted.keys():
        return None
    apart = [_ratio(had[name], wanted[name]) for name in had]
    return sum(apart) if all(a <= SIZES_APART for a in apart) else None


def _ratio(a: int, b: int) -> float:
    return abs(math.log2(max(a, 1) / max(b, 1)))
