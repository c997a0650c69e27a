"""Times of several arms, taken in turns on weights that no cache holds.

An arm is a function of the number of a *set* of arguments. Every call takes the next set, whichever arm makes it, so
that none finds in a cache what another has just read. On a CUDA device an arm's calls over all sets are one CUDA
graph, so that the time of launching kernels from Python, which is not the kernel's, is not measured.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from fxfuse import machine
from fxfuse.errors import FxfuseError
from fxfuse.results import Arm

TIMES_THE_CACHE = 5
"""All sets of weights together have at least this many times the bytes of the last-level cache."""

MOST_SETS = 1024
"""Weights of which so many sets do not fill the cache are not what the time goes to."""

WARM_UP = 3

Call = Callable[[int], object]


class TuningError(FxfuseError, RuntimeError):
    """Nothing can be measured here, or not honestly."""


@dataclass(frozen=True)
class Bench:
    """How long and how carefully is measured.

    Attributes:
        seconds: for all arms of one shape together, compilation apart.
        least, most: turns that each arm gets at any rate, and at most.
        cache: bytes of the cache that weights are rotated around; None: as the machine tells.
    """

    seconds: float = 3.0
    least: int = 11
    most: int = 400
    cache: int | None = None

    def sets(self, weights: int, device: torch.device) -> int:
        """How many sets of weights of so many bytes there have to be.

        Raises:
            TuningError: they do not fit into half of the memory that is free.
        """
        cache = machine.cache_bytes(device) if self.cache is None else self.cache
        sets = min(MOST_SETS, max(2, math.ceil(TIMES_THE_CACHE * cache / max(weights, 1))))
        free = machine.free_bytes(device)
        if 2 * sets * weights > free:
            raise TuningError(
                f"{sets} sets of weights of {weights} bytes are needed to read past a cache of {cache} bytes, twice "
                f"for kernels that derive theirs, and {free} bytes are free on {device}."
            )
        return sets

    def arms(self, calls: Mapping[str, Call], sets: int, device: torch.device) -> dict[str, Arm]:
        """Median time of one call of each arm, and its 20th and 80th percentile, in milliseconds."""
        turns = _Graphs(calls, sets) if device.type == "cuda" else _Calls(calls, sets)
        for _ in range(WARM_UP):
            for name in calls:
                turns.take(name)
        taken: dict[str, list[float]] = {name: [] for name in calls}
        end = time.perf_counter() + self.seconds
        for turn in range(self.most):
            if turn >= self.least and time.perf_counter() > end:
                break
            first = turn % len(calls)
            for name in [*calls][first:] + [*calls][:first]:
                taken[name].append(turns.take(name))
        return {name: summary(times) for name, times in taken.items()}


def summary(times: list[float]) -> Arm:
    """Median and percentiles of seconds, in milliseconds."""
    ordered = sorted(times)
    p20, p80 = (ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in (0.2, 0.8))
    median, low, high = (round(t * 1e3, 6) for t in (statistics.median(ordered), p20, p80))
    return Arm(median, low, high)


class _Calls:
    """Turns of one call each, by the clock."""

    def __init__(self, calls: Mapping[str, Call], sets: int) -> None:
        self._calls = calls
        self._next: Iterator[int] = itertools.cycle(range(sets))

    def take(self, name: str) -> float:
        call, number = self._calls[name], next(self._next)
        start = time.perf_counter()
        call(number)
        return time.perf_counter() - start


class _Graphs:
    """Turns of one CUDA graph each, of a call for every set, by the device's events."""

    def __init__(self, calls: Mapping[str, Call], sets: int) -> None:
        self._sets = sets
        self._graphs = {name: self._capture(call) for name, call in calls.items()}

    def _capture(self, call: Call) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what is compiled or allocated at the first call must not be captured
            for number in range(min(WARM_UP, self._sets)):
                call(number)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for number in range(self._sets):
                call(number)
        return graph

    def take(self, name: str) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self._graphs[name].replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / self._sets
