"""Runs architectures one after the other, or a few at a time, each in a process of its own with limits.

The processes are forked from a server that has torch and transformers loaded already. What a process finds is written
at once, a file an architecture, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bench.coverage.architectures import Architecture

GIB = 1 << 30


@dataclass(frozen=True)
class Plan:
    """What is run of each architecture, within which limits."""

    folder: Path
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    modes: tuple[str, ...] = ("forward", "backward")
    patterns: tuple[str, ...] = ()
    jobs: int = 1
    seconds: float = 240.0
    memory: float = 12.0
    fresh: bool = False

    @property
    def runs(self) -> list[tuple[str, str]]:
        return [(dtype, mode) for mode in self.modes for dtype in self.dtypes]

    def file(self, architecture: Architecture) -> Path:
        return self.folder / (architecture.name.replace(":", "-") + ".json")

    def missing(self, architecture: Architecture) -> list[tuple[str, str]]:
        """The runs that no file has yet."""
        done = {} if self.fresh else load(self.file(architecture)).get("runs", {})
        return [run for run in self.runs if " ".join(run) not in done]


def load(file: Path) -> dict[str, Any]:
    """A record, or nothing where there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def run(architectures: Sequence[Architecture], plan: Plan) -> None:
    """Fill the plan's folder."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.coverage.warm"])
    waiting = [a for a in architectures if plan.missing(a)]
    progress = _Progress(len(waiting), len(architectures) - len(waiting))
    running: list[tuple[Any, Architecture, float]] = []
    while waiting or running:
        while waiting and len(running) < plan.jobs:
            architecture = waiting.pop(0)
            process = context.Process(target=_work, args=(architecture, plan))
            process.start()
            running.append((process, architecture, time.monotonic()))
        still = []
        for process, architecture, since in running:
            process.join(0.05)
            if process.is_alive() and time.monotonic() - since < plan.seconds:
                still.append((process, architecture, since))
                continue
            _end(process, architecture, plan)
            progress.show(architecture, load(plan.file(architecture)), time.monotonic() - since)
        running = still


def _end(process: BaseProcess, architecture: Architecture, plan: Plan) -> None:
    """Make sure that the process is gone and that each run has a record."""
    why = f"its process ended with exit code {process.exitcode}"
    if process.is_alive():
        process.kill()
        process.join()
        why = f"stopped after {plan.seconds:.0f} s"
    left = Plan(**{**vars(plan), "fresh": False}).missing(architecture)
    if left:
        _write(architecture, plan, {" ".join(run): {"status": "not finished", "error": why} for run in left})


def _work(architecture: Architecture, plan: Plan) -> None:
    """In the process: the runs that are missing, each written as soon as it is there."""
    import torch

    from bench.coverage import quiet, worker

    limit = int(plan.memory * GIB)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.set_num_threads(1)
    quiet.silence()
    for dtype, mode in plan.missing(architecture):
        try:
            found = worker.examine(architecture, dtypes=[dtype], modes=[mode], patterns=plan.patterns)["runs"]
        except MemoryError:
            found = {f"{dtype} {mode}": {"status": "not finished", "error": f"more than {plan.memory:g} GiB"}}
        except Exception:
            found = {f"{dtype} {mode}": {"status": "not finished", "error": traceback.format_exc(limit=-3)}}
        _write(architecture, plan, found)


def _write(architecture: Architecture, plan: Plan, runs: dict[str, Any]) -> None:
    file = plan.file(architecture)
    record = load(file)
    record.update(
        {"name": architecture.name, "class": architecture.class_name, "kind": architecture.kind,
         "family": architecture.family, "runs": {**record.get("runs", {}), **runs}}
    )  # fmt: skip
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1), encoding="utf-8")
    partial.replace(file)


class _Progress:
    def __init__(self, total: int, done_before: int) -> None:
        self.total, self.done = total, 0
        self.start = time.monotonic()
        if done_before:
            print(f"{done_before} architectures were there already", file=sys.stderr)

    def show(self, architecture: Architecture, record: dict[str, Any], seconds: float) -> None:
        self.done += 1
        left = (time.monotonic() - self.start) / self.done * (self.total - self.done)
        runs = record.get("runs", {})
        states = ", ".join(f"{name}: {r['status']}" for name, r in runs.items() if r["status"] != "ok") or "ok"
        print(
            f"[{self.done}/{self.total}, {left / 60:.0f} min left] {architecture.name} {seconds:.0f} s {states}",
            file=sys.stderr,
            flush=True,
        )
