"""Processes with empty caches, the arms in turns."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from bench.reuse.arms import Case

FIGURES = (
    "seconds",
    "processor_seconds",
    "tracing_seconds",
    "ms",
    "eager_ms",
    "error",
    "compile_mib",
    "call_mib",
    "children_mib",
)


def measure(case: Case, arms: Sequence[str], repeats: int, threads: int) -> list[dict[str, Any]]:
    """A row for each arm, with medians over ``repeats`` processes."""
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for _ in range(repeats):
        for arm in arms:
            found[arm].append(_once(case, arm, threads))
            print(f"{case.model} {case.layers} {case.graph} {arm}: {found[arm][-1]}", file=sys.stderr, flush=True)
    return [{**vars(case), "arm": arm, **_median(rows)} for arm, rows in found.items()]


def _once(case: Case, arm: str, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TORCHINDUCTOR_CACHE_DIR": folder,
            "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
        }
        what = [case.model, case.graph, str(case.layers), arm, str(threads)]
        command = [sys.executable, "-m", "bench.reuse.worker", *what]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(what)} failed:\n{done.stderr[-2000:]}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result


def _median(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    middle = {
        name: statistics.median(row[name] for row in rows) if rows[0][name] is not None else None for name in FIGURES
    }
    return {**middle, "regions": rows[0]["regions"], "processes": len(rows)}


def environment(threads: int) -> dict[str, Any]:
    """What the figures were taken on."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="ignore") as info:
        names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
