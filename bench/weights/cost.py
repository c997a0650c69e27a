"""What the check of derived weights costs on each call, for so many fused sources."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxfuse.params import Derived, DerivedInputs, pack, stack

GATE_UP = stack("gate", "up")


@dataclass(frozen=True)
class Cost:
    """Microseconds of one check, best and in the median of its turns."""

    placement: str
    sources: int
    best: float
    median: float


def costs(placements: Sequence[str] = ("share", "copy"), sources: int = 200, turns: int = 60) -> list[Cost]:
    """All placements in one process, interleaved."""
    calls: dict[str, tuple[DerivedInputs, list[Tensor]]] = {}
    for placement in placements:
        weights: list[Tensor] = [nn.Parameter(torch.randn(32, 32)) for _ in range(sources)]
        derived = [Derived(GATE_UP, (2 * i, 2 * i + 1), placement) for i in range(sources // 2)]
        calls[placement] = DerivedInputs(derived), weights
    times: dict[str, list[float]] = {placement: [] for placement in placements}
    with torch.no_grad():
        for turn in range(turns + 1):
            for placement, (check, weights) in calls.items():
                start = time.perf_counter()
                for _ in range(20):
                    check(weights)
                if turn:  # the first builds
                    times[placement].append((time.perf_counter() - start) / 20 * 1e6)
    return [Cost(p, sources, min(found), statistics.median(found)) for p, found in times.items()]


def packed_sizes(
    shapes: Sequence[tuple[int, int]] = ((576, 576), (960, 576), (3072, 576), (576, 1536), (100, 36)),
) -> list[dict[str, int]]:
    """Bytes of float32 weights as they are, as `pack` foresees them, and as oneDNN and MKL (for 16 rows) pack them."""
    found = []
    for rows, columns in shapes:
        weight, transform = torch.randn(rows, columns), pack("w")
        onednn = transform.bytes_held(transform(weight))
        mkl = torch.ops.mkldnn._nbytes(torch.ops.mkl._mkl_reorder_linear_weight(weight, 16))
        foreseen = transform.bytes([(rows, columns)], [torch.float32])
        sizes = {"plain": weight.nbytes, "foreseen": foreseen, "onednn": onednn, "mkl": mkl}
        found.append({"rows": rows, "columns": columns, **sizes})
    return found
