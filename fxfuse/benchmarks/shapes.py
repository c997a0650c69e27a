"""What is measured where nobody says what: patterns, widths, rows, dtypes and models, by device. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fxfuse.tune_command import DTYPES, WIDTHS

__all__ = ["DTYPES", "ROWS", "WIDTHS", "Extent", "OpCell", "extent", "op_cells"]

ROWS = (1, 8, 64, 512, 4096, 8192)
"""One row is decode; from some hundred on it is prefill, or training."""

FIRST = (1, 64, 4096)
"""Rows that are measured before the others, so that a run which is stopped has something of each regime."""


@dataclass(frozen=True)
class Extent:
    """How much is measured by default on a kind of device."""

    widths: tuple[str, ...]
    rows: tuple[int, ...]
    dtypes: tuple[str, ...]
    models: tuple[str, ...]
    layers: int | None
    vocabulary: int | None
    prompt: int
    seconds: float


_EXTENTS = {
    "cuda": Extent(tuple(WIDTHS), ROWS, ("bf16", "fp16", "fp32"), ("smollm2", "0.6b", "8b"), None, None, 512, 1.0),
    "cpu": Extent(("qwen3-0.6b",), (1, 8, 64, 512), ("bf16", "fp32"), ("smollm2", "0.6b", "8b"), 4, 4096, 64, 3.0),
}
_QUICK = {
    "cuda": Extent(("qwen3-0.6b",), (1, 512), ("bf16",), ("0.6b",), 2, 4096, 64, 0.3),
    "cpu": Extent(("qwen3-0.6b",), (1, 64), ("bf16",), ("0.6b",), 1, 512, 16, 0.5),
}


def extent(device: str, *, quick: bool) -> Extent:
    """The default extent on a device: on a CPU few layers, and no shapes that take minutes each."""
    return (_QUICK if quick else _EXTENTS)[device]


@dataclass(frozen=True)
class OpCell:
    """One measurement of `fxfuse bench op`."""

    pattern: str
    width: str
    dtype: str
    rows: int


def op_cells(
    patterns: Sequence[str], widths: Sequence[str], dtypes: Sequence[str], rows: Sequence[int]
) -> Iterator[OpCell]:
    """Every cell, those first that say most: the first pattern and dtype, and few, typical and many rows."""
    ordered = sorted(rows, key=lambda n: (n not in FIRST, n))
    for pattern in patterns:
        for dtype in dtypes:
            for count in ordered:
                for width in widths:
                    yield OpCell(pattern, width, dtype, count)
