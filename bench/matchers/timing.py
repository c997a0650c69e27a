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
