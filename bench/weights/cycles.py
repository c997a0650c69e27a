"""Models compiled and dropped, one after another: what is left of them."""

from __future__ import annotations

import gc
import resource
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.weights.model import PLACEMENTS, Decoder, compiled, inputs
from fxfuse.params import copies
from fxfuse.params.share import group_count


@dataclass(frozen=True)
class Left:
    """What a process holds after so many cycles. ``resident`` is in MB; all else are counts."""

    cycle: int
    tensors: int
    groups: int
    copies: int
    resident: float


def cycles(count: int, look_every: int, *, stock: bool = False) -> list[Left]:
    """A look after the first eight cycles, when all caches are warm, and after each further `look_every`.

    `stock` is the same with torch's own eager backend: what Dynamo leaves behind by itself.
    """
    found = []
    names = list(PLACEMENTS)
    for cycle in range(1, count + 1):
        _cycle(None if stock else names[cycle % len(names)])
        if cycle == 8 or cycle % look_every == 0:
            found.append(_look(cycle))
    return found


@torch.no_grad()
def _cycle(placement: str | None) -> None:
    torch._dynamo.reset()
    model = Decoder()
    fast: Any = torch.compile(model, backend="eager") if placement is None else compiled(model, placement)
    for _ in range(2):
        fast(inputs())
        model.layers[0].mlp.gate.weight.data.mul_(0.5)
    torch._dynamo.reset()


def _look(cycle: int) -> Left:
    import ctypes

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    tensors = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
    with open("/proc/self/statm", encoding="ascii") as statm:
        resident = int(statm.read().split()[1]) * resource.getpagesize() / 1e6
    return Left(cycle, tensors, group_count(), len(copies()), resident)
