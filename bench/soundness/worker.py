"""One process's share of a run: every n-th index of a seed."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.soundness.execute import Verdict, check
from bench.soundness.generate import generate
from bench.soundness.patterns import everything
from bench.soundness.program import Program
from bench.soundness.repro import save, script
from bench.soundness.setting import Setting, choose
from bench.soundness.shrink import shrink
from bench.soundness.targets import TARGETS
from bench.soundness.totals import Failing, Totals
from fxfuse.authoring import Pattern

MOST_SHOWN = 20
"""Failures that are shrunk; further ones are counted."""


@dataclass(frozen=True)
class Task:
    """What a run does, the same for each of its workers. ``dynamo``, ``aten``: shares of the captures.
    ``target``: the safeguard that programs are to need."""

    seed: int
    graphs: int
    workers: int = 1
    start: int = 0
    dynamo: float = 0.1
    aten: float = 0.05
    scripts: Path = Path("soundness-failures")
    shrink_seconds: float = 60.0
    target: str = ""


def one(task: Task, index: int, patterns: Sequence[Pattern]) -> tuple[Program, Setting, Verdict]:
    """The program with this index, and what came of it."""
    program = generate(task.seed, index, patterns, task.target)
    rng = random.Random(f"setting {task.seed}/{index}")
    setting = choose(rng, program, patterns, dynamo=task.dynamo, aten=task.aten, aim=TARGETS.get(task.target))
    return program, setting, check(program, setting, patterns)


def work(task: Task, worker: int = 0) -> Totals:
    """Run the share of one worker."""
    torch.set_num_threads(1)
    patterns = everything()
    totals = Totals()
    start = time.perf_counter()
    for index in range(task.start + worker, task.start + task.graphs, task.workers):
        program, setting, verdict = one(task, index, patterns)
        totals.count(verdict, setting.capture)
        if verdict.failed:
            failing = Failing(index, verdict.wrong or verdict.crash)
            found = totals.wrong if verdict.wrong else totals.crashes
            if len(found) < MOST_SHOWN:
                failing.script = str(_script(task, index, program, setting, verdict, patterns))
            found.append(failing)
    totals.seconds = time.perf_counter() - start
    return totals


def _script(
    task: Task, index: int, program: Program, setting: Setting, verdict: Verdict, patterns: Sequence[Pattern]
) -> Path:
    """Shrink a failure and write its script."""
    small = shrink(program, lambda p: check(p, setting, patterns).kind == verdict.kind, seconds=task.shrink_seconds)
    last = check(small, setting, patterns)
    text = script(small, setting, last, patterns, f"seed {task.seed}, graph {index}")
    return save(text, task.scripts, f"{last.kind.replace(' ', '_')}_{task.seed}_{index}")
