"""The fuzz proves itself: with any one safeguard lifted, it must find a wrong result or a crash."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.soundness.execute import check
from bench.soundness.patterns import everything
from bench.soundness.targets import TARGETS
from bench.soundness.worker import Task, one
from fxfuse.safeguards import SAFEGUARDS, lifted

MOST = 4_000
SECONDS = 120.0
"""How long one safeguard is tried."""


@dataclass
class Shown:
    """What lifting one safeguard led to. ``graphs``: how many were tried; ``what`` is empty where nothing was seen.

    ``behind``: safeguards that were lifted with it, since each would have caught the fault by itself.
    """

    name: str
    prevents: str
    graphs: int
    seconds: float
    what: str = ""
    index: int = -1
    behind: tuple[str, ...] = ()


def try_one(name: str, task: Task, most: int = MOST, seconds: float = SECONDS) -> Shown:
    """Lift one safeguard until a program fails that is right with it."""
    torch.set_num_threads(1)
    patterns = everything()
    behind = TARGETS[name].behind if name in TARGETS else ()
    start = time.perf_counter()
    for index in range(task.start, task.start + most):
        if time.perf_counter() - start > seconds:
            most = index - task.start
            break
        with lifted(name, *behind):
            program, setting, verdict = one(replace(task, target=name), index, patterns)
        if not verdict.failed:
            continue
        with lifted(*behind):  # right with it: nothing but this safeguard stands before the fault
            if check(program, setting, patterns).failed:
                continue
        tried, what = index - task.start + 1, verdict.wrong or verdict.crash
        return Shown(name, SAFEGUARDS[name].prevents, tried, time.perf_counter() - start, what, index, behind)
    return Shown(name, SAFEGUARDS[name].prevents, most, time.perf_counter() - start, behind=behind)


def prove(task: Task, only: Sequence[str], path: Path | None) -> int:
    """Lift each safeguard in turn; exit code 1 where one was lifted and nothing was seen."""
    everything()  # safeguards are declared where they stand, so what stands there is imported first
    names = list(only) or sorted(SAFEGUARDS)
    if task.workers == 1:
        results = [try_one(name, task) for name in names]
    else:
        with multiprocessing.get_context("spawn").Pool(task.workers) as pool:
            results = pool.starmap(try_one, [(name, task) for name in names], chunksize=1)
    show(results)
    if path is not None:
        path.write_text(json.dumps([vars(r) for r in results], indent=1), encoding="utf-8")
    return int(any(not r.what for r in results))


def show(results: Sequence[Shown]) -> None:
    """The table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Each safeguard lifted: after how many graphs a wrong result was seen")
    for column in ("safeguard", "prevents", "graphs", "seconds", "found", "lifted with it"):
        table.add_column(column)
    for r in results:
        table.add_row(r.name, r.prevents, str(r.graphs), f"{r.seconds:.0f}", r.what or "NOT SHOWN", ", ".join(r.behind))
    console = Console()
    console.print(table)
    missing = [r.name for r in results if not r.what]
    console.print(
        f"{len(results) - len(missing)} of {len(results)} shown" + (f"; not shown: {missing}" if missing else "")
    )
