"""What the tests of the benchmarks share: tiny shapes, no Inductor, and results in a folder of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fxfuse.benchmarks import records
from fxfuse.benchmarks.shapes import WIDTHS
from fxfuse.cli import main

PATTERN = "rms_norm_gated_mlp"
TINY = {"hidden": 16, "intermediate": 32, "out": 16}
QUICK = ["--device", "cpu", "--inner", "eager", "--seconds", "0", "--dtypes", "fp32"]
OP = [*QUICK, "--cache-mib", "1", "--widths", "tiny", "--rows", "2", "3"]
MODEL = [*QUICK, "--models", "tiny", "--layers", "1", "--prompt-tokens", "4"]


def use_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more width, and rates that need not be measured."""
    monkeypatch.setitem(WIDTHS, "tiny", TINY)
    monkeypatch.setattr("fxfuse.benchmarks.suites.copy_rate", lambda device: 1e10)
    monkeypatch.setattr("fxfuse.benchmarks.suites.matmul_rate", lambda device, dtype: 1e11)


def bench(suite: str, folder: Path, *flags: str) -> int:
    """`fxfuse bench`, with results in a folder."""
    return main(["bench", suite, "--results", str(folder), *flags])


def the_file(folder: Path) -> records.File:
    """The one results file of a folder."""
    (file,) = records.load_all(str(folder))
    return file


def cell(suite: str = "op", ms: float = 2.0, **more: Any) -> dict[str, Any]:
    """A cell as the op suite writes it."""
    figures = {"p20": ms, "p80": ms, "error_max": 1e-3, "error_rms": 1e-4, "within": True}
    return {
        "suite": suite, "what": {"pattern": PATTERN, "width": "qwen3-0.6b", "dtype": "bf16", "rows": 8},
        "date": "2026-01-01T00:00:00+00:00", "load": 0.1, "sets": 4, "bytes": 10**7, "flops": 10**8,
        "against": "float64", "eager_error_max": 1e-3, "eager_error_rms": 1e-4,
        "arms": {
            "eager": {"ms": 2 * ms, **figures}, "inductor": {"ms": ms, **figures},
            "hand-stacked": {"ms": ms / 2, **figures},
            "fxfuse": {"ms": ms / 1.5, "ran": "plain (separate)", **figures},
            "kernel:slow": {"ms": ms * 2, **figures, "within": False},
        },
        "skipped": {"liger": "liger-kernel is not installed"}, **more,
    }  # fmt: skip
