"""`fxfuse bench all`: the kernels against float64, tests, tuning and every suite, each with its share of the time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

from fxfuse.benchmarks.budget import Budget
from fxfuse.benchmarks.plan import Plan
from fxfuse.benchmarks.records import File
from fxfuse.benchmarks.running import Outcome

SHARES = {"kernels": 14, "tests": 3, "tune": 16, "op": 33, "model": 20, "compile": 8, "memory": 6}
"""How the time is split among the steps; what one does not use is there for those that follow."""

SUITES = tuple(step for step in SHARES if step != "tests")

CUDA_SECONDS = 1500.0
"""What a run may take on a CUDA device where nobody says: 25 minutes."""

TESTS = "tests"

Run = Callable[[str, Plan, Budget], Outcome]


def run_everything(plan: Plan, file: File, seconds: float | None, run: Run, say: Callable[[str], None]) -> Outcome:
    """Every step in order. What one leaves undone, ``resume`` measures.

    Args:
        seconds: for all of it; None: as long as it takes.
        run: runs one suite within a budget.
    """
    whole = Budget(seconds)
    outcome = Outcome()
    steps = list(SHARES)
    for number, step in enumerate(steps):
        left = whole.left
        part = SHARES[step] / sum(SHARES[s] for s in steps[number:])
        share = None if left is None else left * part
        say(f"{step}{'' if share is None else f', at most {share:.0f} s'}")
        if step == "tests":
            file.steps["tests"] = device_tests(plan.device.type, share)
            file.save()
            say(file.steps["tests"])
        elif step == "tune":
            found = run(step, replace(plan, dtypes=plan.dtypes[:1]), Budget(share))
            file.steps["tune"] = f"{found.done} measured, {found.kept} were there, {found.left} left out"
            file.save()
            outcome.add(found)
        elif step == "kernels":
            outcome.add(run(step, plan, Budget(share)))
        else:
            outcome.add(run(step, plan if step == "op" else replace(plan, dtypes=plan.dtypes[:1]), Budget(share)))
    return outcome


def device_tests(device: str, seconds: float | None) -> str:
    """Run the tests that need an accelerator, where the sources are at hand; what came of it, in words."""
    if device != "cuda":
        return "not run: they need an accelerator"
    if not os.path.isdir(TESTS):
        return f"not run: there is no folder {TESTS} here"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", TESTS]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    lines = [line for line in done.stdout.splitlines() if re.search(r"\d+ (passed|failed|error)|no tests ran", line)]
    return lines[-1].strip("= ") if lines else f"pytest ended with exit code {done.returncode}"
