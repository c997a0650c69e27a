"""Seconds of a call: wall and process time, repeated, under a cap."""

from __future__ import annotations

import contextlib
import gc
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


class OverTheCap(Exception):
    """A call that took longer than it may."""


@dataclass
class Times:
    """What several calls took; ``over`` is the cap where one was stopped."""

    wall: list[float] = field(default_factory=list)
    process: list[float] = field(default_factory=list)
    result: Any = None
    over: float | None = None

    @property
    def seconds(self) -> float:
        """Median wall time."""
        return statistics.median(self.wall)

    @property
    def process_seconds(self) -> float:
        return statistics.median(self.process)


def measure(times: Times, call: Callable[[], Any], *, cap: float, collect: bool = True) -> None:
    """Add one call to ``times``. Garbage of before is collected first; ``collect`` says whether the call may."""
    if times.over is not None:
        return
    gc.collect()
    with _without_collector() if not collect else contextlib.nullcontext():
        wall, process = time.perf_counter(), time.process_time()
        try:
            with capped(cap):
                times.result = call()
        except OverTheCap:
            times.over = cap
            return
        times.wall.append(time.perf_counter() - wall)
        times.process.append(time.process_time() - process)


def pace(turns: int = 50) -> float:
    """Median milliseconds of processor time of 200,000 dictionary reads: how fast this machine is just now.

    Others on the same cores slow a thread's processor time, too, so times of two runs compare only at one pace.
    """
    table = {i: i for i in range(1_000)}
    taken = []
    for _ in range(turns):
        start = time.process_time()
        for _ in range(200):
            for key in table:
                table.get(key)
        taken.append(time.process_time() - start)
    return statistics.median(taken) * 1e3


@contextlib.contextmanager
def capped(seconds: float) -> Iterator[None]:
    """Raise OverTheCap in the block when it takes longer (of Python code: a signal waits for C code to end)."""

    def stop(*_: Any) -> None:
        raise OverTheCap

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
