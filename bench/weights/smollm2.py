"""Forward time of SmolLM2 with its real weights, by row count: eager, Inductor's default, and fxfuse with and without
memory for second copies. All arms run interleaved in one process, and only their ratios mean anything."""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch

import fxfuse
from bench.weights.table import held
from fxfuse.demo.load import DTYPES, load

PATTERNS = ("rms_norm_gated_mlp", "rms_norm_qkv", "linear")
GRANT = 1.0


def measure(args: Namespace) -> list[dict[str, Any]]:
    """One record for each dtype and row count, printed as it comes."""
    records = []
    for dtype in args.dtypes:
        for rows in args.rows:
            record = one(dtype, rows, args)
            for name, arm in record["arms"].items() if args.resident else ():
                arm["resident"] = _alone(name, dtype, rows, args)
            records.append(record)
            ratios = ", ".join(
                f"{name} {arm['ratio']:.2f} ({arm['ms']:.1f} ms)" for name, arm in record["arms"].items()
            )
            errors = ", ".join(f"{arm['error']:.2e} max {arm['worst']:.2e}" for arm in record["arms"].values())
            kernels = ", ".join(f"{count} {name}" for name, count in record["arms"]["granted"]["kernels"].items())
            print(f"{dtype}, {rows} rows: {ratios}; errors {errors}; {kernels}", flush=True)
    return records


@torch.no_grad()
def one(dtype: str, rows: int, args: Namespace) -> dict[str, Any]:
    """Medians, ratios to Inductor's, errors against float64 and bytes of every arm."""
    torch.manual_seed(0)
    loaded = load(None, DTYPES[dtype], "cpu").model
    loaded.model.layers = loaded.model.layers[: args.layers]
    loaded.config.num_hidden_layers = len(loaded.model.layers)
    ids = torch.randint(0, 49_000, (1, rows))
    exact = copy.deepcopy(loaded).double()(ids, use_cache=False).logits
    calls: dict[str, Callable[[], Any]] = {}
    arms: dict[str, dict[str, Any]] = {}
    for name, make in _arms().items():
        torch._dynamo.reset()
        model = copy.deepcopy(loaded)
        seen = len(fxfuse.reports())
        forward: Any = make(model)
        calls[name] = lambda forward=forward: forward(ids, use_cache=False).logits
        found = calls[name]()
        off = found.double() - exact
        error = (off.pow(2).mean().sqrt() / exact.pow(2).mean().sqrt()).item()
        worst = (off.abs().max() / exact.abs().max()).item()
        sites = [s for report in fxfuse.reports()[seen:] for s in report.sites if s.outcome == "rewritten"]
        kernels = {kernel: sum(s.kernel == kernel for s in sites) for kernel in sorted({s.kernel for s in sites})}
        arms[name] = {"error": error, "worst": worst, "bytes": held(model), "kernels": kernels}
    for name, median in _interleaved(calls, args.seconds).items():
        arms[name]["ms"] = median
    for arm in arms.values():
        arm["ratio"] = arms["inductor"]["ms"] / arm["ms"]
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    return {
        "dtype": dtype, "rows": rows, "layers": args.layers, "threads": args.threads, "isa": isa,
        "load": os.getloadavg()[0], "arms": arms,
    }  # fmt: skip


@torch.no_grad()
def resident(dtype: str, rows: int, name: str, layers: int) -> float:
    """Megabytes that this process holds after calls of one arm."""
    model = load(None, DTYPES[dtype], "cpu").model
    model.model.layers = model.model.layers[:layers]
    forward: Any = _arms()[name](model)
    ids = torch.randint(0, 49_000, (1, rows))
    for _ in range(3):
        forward(ids, use_cache=False)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _alone(name: str, dtype: str, rows: int, args: Namespace) -> float:
    """`resident` in a process of its own, whose compiles come out of Inductor's cache."""
    command = [sys.executable, "-m", "bench.weights", "--smollm2", "--arm", name, "--dtypes", dtype]
    command += ["--rows", str(rows), "--layers", str(args.layers), "--threads", str(args.threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def _arms() -> dict[str, Callable[[Any], Any]]:
    def fused(**options: Any) -> Callable[[Any], Any]:
        backend = fxfuse.Backend(patterns=PATTERNS, on_error="raise", **options)
        return lambda model: torch.compile(model, backend=backend, dynamic=False)

    return {
        "eager": lambda model: model,
        "inductor": lambda model: torch.compile(model, dynamic=False),
        "no extra memory": fused(),
        "granted": fused(extra_memory=GRANT),
    }


def _interleaved(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Milliseconds in the median of each, in turns until the time is up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["eager"]) < 7:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(found) for name, found in times.items()}
