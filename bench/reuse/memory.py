"""How much memory a compile and a call take beyond what was there before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def reset_peak() -> None:
    """Forget this process's peak, so that it is not that of loading the model (Linux)."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def resident() -> float:
    """MiB that this process holds now."""
    return _status("VmRSS")


def peak() -> float:
    """The most MiB that it held since :func:`reset_peak`."""
    return _status("VmHWM")


def _status(name: str) -> float:
    with open("/proc/self/status", encoding="ascii", errors="ignore") as file:
        (line,) = (line for line in file if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def allocated_by(call: Callable[[], Any]) -> float:
    """The most MiB of tensors that are alive at one time during a call, those from before it not counted.

    Taken from each allocation, since an allocator keeps what was freed, and the process's size tells nothing."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = call()
    del kept
    events: Any = profile.profiler
    steps = [e for e in events.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(steps, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most / 2**20
