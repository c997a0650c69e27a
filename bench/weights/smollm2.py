"""Forward time of SmolLM2 with its real weights, by row count: eager, Inductor's default, and fxfuse with and without
memory for second copies. All arms run interleaved in one process, and only their ratios mean anything."""

from __future__ import annotations

import copy
import os
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch

import fxfuse
from bench.weights.table import held
from fxfuse.demo.load import DTYPES, load

PATTERNS = ("rms_norm_gated_mlp", "rms_norm_qkv", "linear")
GRANTS = {"fp32": 1.0, "bf16": 2.0}
"""What the packed fp32 weights take, of the parameters' own bytes."""


def measure(args: Namespace) -> list[dict[str, Any]]:
    """One record for each dtype and row count, printed as it comes."""
    records = []
    for dtype in args.dtypes:
        for rows in args.rows:
            record = one(dtype, rows, args)
            records.append(record)
            ratios = ", ".join(
                f"{name} {arm['ratio']:.2f} ({arm['ms']:.1f} ms)" for name, arm in record["arms"].items()
            )
            print(f"{dtype}, {rows} rows: {ratios}", flush=True)
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
    for name, make in _arms(dtype).items():
        torch._dynamo.reset()
        model = copy.deepcopy(loaded)
        seen = len(fxfuse.reports())
        forward: Any = make(model)
        calls[name] = lambda forward=forward: forward(ids, use_cache=False).logits
        found = calls[name]()
        error = ((found.double() - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt()).item()
        sites = [s for report in fxfuse.reports()[seen:] for s in report.sites if s.outcome == "rewritten"]
        kernels = {kernel: sum(s.kernel == kernel for s in sites) for kernel in sorted({s.kernel for s in sites})}
        arms[name] = {"error": error, "bytes": held(model), "kernels": kernels}
    for name, median in _interleaved(calls, args.seconds).items():
        arms[name]["ms"] = median
    for arm in arms.values():
        arm["ratio"] = arms["inductor"]["ms"] / arm["ms"]
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    return {
        "dtype": dtype, "rows": rows, "layers": args.layers, "threads": args.threads, "isa": isa,
        "load": os.getloadavg()[0], "arms": arms,
    }  # fmt: skip


def _arms(dtype: str) -> dict[str, Callable[[Any], Any]]:
    def fused(**options: Any) -> Callable[[Any], Any]:
        backend = fxfuse.Backend(patterns=PATTERNS, on_error="raise", **options)
        return lambda model: torch.compile(model, backend=backend, dynamic=False)

    return {
        "eager": lambda model: model,
        "inductor": lambda model: torch.compile(model, dynamic=False),
        "no extra memory": fused(),
        "granted": fused(extra_memory=GRANTS[dtype]),
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
