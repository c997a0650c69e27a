"""`fxfuse bench compile` and `memory`: each arm in a process of its own, with empty caches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fxfuse.benchmarks.arms import INDUCTOR, Arm, absent

Progress = Callable[[str], None]
Keep = Callable[[dict[str, Any]], None]

COMPILE = ("seconds", "prefill_seconds", "own_seconds", "rehearsal_seconds", "graphs")
MEMORY = ("weights", "loaded", "held", "peak")
LIMIT = 1800.0
"""Seconds after which a process is given up."""


def measure(
    suite: str,
    what: Mapping[str, Any],
    arms: Sequence[Arm],
    device: torch.device,
    *,
    prompt_tokens: int,
    layers: int | None,
    vocabulary: int | None,
    progress: Progress,
    keep: Keep,
    had: Mapping[str, Any] | None = None,
    limit: Callable[[], float | None] = lambda: None,
    inner: str = INDUCTOR,
) -> None:
    """Give ``keep`` the figures of one model after each arm: seconds of compiling, or bytes.

    Args:
        had: figures and reasons that are there already.
        limit: seconds that a process may take now; None: as many as it takes.
    """
    names = COMPILE if suite == "compile" else MEMORY
    figures: dict[str, Any] = dict((had or {}).get("arms", {}))
    skipped: dict[str, str] = dict((had or {}).get("skipped", {}))
    found = {"vocabulary": vocabulary, "arms": figures, "skipped": skipped}
    for arm in arms:
        why = absent(arm, device.type, inner)
        if why is not None:
            skipped[arm.name] = why
            continue
        if arm.name in figures or arm.name in skipped:
            continue
        seconds = limit()
        if seconds is not None and seconds <= 0:
            break
        progress(arm.name)
        task = {
            "arm": arm.name, "device": device.type, "layers": layers, "vocabulary": vocabulary,
            "prompt": prompt_tokens, "threads": torch.get_num_threads() if device.type == "cpu" else None,
            "model": what["model"], "dtype": what["dtype"], "inner": inner,
        }  # fmt: skip
        try:
            done = _process(task, seconds)
        except subprocess.TimeoutExpired:
            if seconds is not None:
                break
            skipped[arm.name] = f"took more than {LIMIT:.0f} s"
            continue
        if isinstance(done, str):
            skipped[arm.name] = done
        else:
            figures[arm.name] = {name: done[name] for name in names}
        keep(found)
    keep(found)


def _process(task: Mapping[str, Any], seconds: float | None) -> dict[str, Any] | str:
    """What a worker found, or why it failed."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {name: os.path.join(folder, name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        command = [sys.executable, "-W", "ignore", "-m", "fxfuse.benchmarks.worker", json.dumps(task)]
        done = subprocess.run(
            command, env={**os.environ, **caches}, capture_output=True, text=True, timeout=seconds or LIMIT, check=False
        )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"ended with exit code {done.returncode}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
