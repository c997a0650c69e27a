"""One arm of one model in a process of its own: how long it compiles from nothing, and the memory that it takes.

`python -m fxfuse.benchmarks.worker JSON` prints one line of JSON, the last that it prints.
"""

from __future__ import annotations

import contextlib
import gc
import json
import re
import resource
import sys
import time
from typing import Any

import torch

from fxfuse.benchmarks.arms import ARMS, INDUCTOR, MODEL, compiled
from fxfuse.benchmarks.model import changed
from fxfuse.benchmarks.models import build, prompt
from fxfuse.demo.greedy import GreedyDecoder, Step
from fxfuse.demo.show import Arm as Run

STEPS = 4


def run(task: dict[str, Any]) -> dict[str, Any]:
    """What the arm takes: seconds of compiling, of which fxfuse's own, and bytes held and at the peak."""
    arm = next(arm for arm in ARMS[MODEL] if arm.name == task["arm"])
    if task["threads"] is not None:
        torch.set_num_threads(task["threads"])
    device: str = task["device"]
    model = build(task["model"], task["dtype"], device, task["layers"], task["vocabulary"])
    weights = sum(p.nbytes for p in model.parameters())
    own = changed(model, arm)
    del model
    if arm.backend is not None and task["inner"] == INDUCTOR:
        torch.compile(torch.sin)(torch.ones(8, device=device))  # starting Inductor counts for no arm
    gc.collect()
    before = held(device)
    forget_peak(device)
    ids = prompt(own, task["prompt"])
    with torch.no_grad():
        answering = Run(
            arm.name, compiled(arm, own, inner=task["inner"]), GreedyDecoder(own, ids, STEPS + 8, frozenset())
        )
        start = time.perf_counter()
        steps: list[Step] = []
        while (step := answering.rehearse()) is not None:
            steps.append(step)
        whole = time.perf_counter() - start
        for _ in zip(range(STEPS), answering.answer(), strict=False):
            pass
    gc.collect()
    return {
        "seconds": round(answering.compile_seconds, 3),
        "prefill_seconds": round(steps[0].seconds if steps[0].compiled else 0.0, 3),
        "own_seconds": round(sum(report.own_seconds for report in answering.reports), 3),
        "rehearsal_seconds": round(whole, 3),
        "graphs": answering.graphs,
        "weights": weights,
        "loaded": before,
        "held": held(device),
        "peak": peak(device),
    }


def held(device: str) -> int:
    """Bytes that the process has: of the card's memory, or resident."""
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    return _status("VmRSS")


def peak(device: str) -> int:
    """The most bytes that the process had since :func:`forget_peak`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def forget_peak(device: str) -> None:
    """Count the peak from now on, where the system allows it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")


def _status(name: str) -> int:
    try:
        with open("/proc/self/status", encoding="ascii", errors="ignore") as file:
            found = re.search(rf"^{name}:\s*(\d+) kB$", file.read(), re.MULTILINE)
    except OSError:
        return 0
    return int(found.group(1)) << 10 if found else 0


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))), flush=True)
