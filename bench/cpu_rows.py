"""Forward time of a small Llama on a CPU by row count: eager, Inductor's default, and fxfuse by placement.

    python bench/cpu_rows.py                                        # fp32 and bf16, 1 to 256 rows
    python bench/cpu_rows.py --dtypes bf16 --isa AVX512_CORE_VNNI   # as on a CPU without bf16 instructions

All arms of a row count run in one process, interleaved, on the same weights; a figure is the median time and its
ratio to Inductor's default (above 1: faster than Inductor). Weights are random in SmolLM2-135M's sizes, with enough
layers that they do not stay in cache. The output is a table and, with --json, a file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

ARMS: dict[str, dict[str, Any] | None] = {
    "eager": None,
    "inductor": None,
    "fxfuse": {},
    "fxfuse share": {"weights": "share"},
    "fxfuse copy": {"weights": "copy", "extra_memory": 1.0},
}
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 16, 32, 48, 64, 256])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["eager", "inductor", "fxfuse", "fxfuse share"])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each row count, all arms together")
    parser.add_argument("--isa", help="cap on the instructions that oneDNN may use (ONEDNN_MAX_CPU_ISA)")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    if args.isa and os.environ.get("ONEDNN_MAX_CPU_ISA") != args.isa:
        os.environ["ONEDNN_MAX_CPU_ISA"] = args.isa  # oneDNN reads it once, at load
        os.execv(sys.executable, [sys.executable, *sys.argv])
    results = [measure(dtype, rows, args) for dtype in args.dtypes for rows in args.rows]
    show(results, args.arms)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"environment": environment(args.isa), "results": results}, file, indent=1)
    return 0


def measure(dtype: str, rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """Median milliseconds and error of each arm at one dtype and row count."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    import fxfuse

    torch._dynamo.reset()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=args.layers, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=1024,
    )  # fmt: skip
    reference = LlamaModel(config).eval()
    models = {arm: LlamaModel(config).eval().to(getattr(torch, DTYPES[dtype])) for arm in args.arms}
    for model in models.values():
        model.load_state_dict(reference.state_dict())
    inputs = torch.randint(0, config.vocab_size, (1, rows))
    calls: dict[str, Callable[[], Any]] = {}
    errors: dict[str, float] = {}
    kernels: dict[str, str] = {}
    with torch.no_grad():
        exact = reference.double()(inputs, use_cache=False).last_hidden_state
        for arm, model in models.items():
            forward: Any = model
            if arm == "inductor":
                forward = torch.compile(model, dynamic=False)
            elif arm != "eager":
                forward = torch.compile(model, backend="fxfuse", options=ARMS[arm], dynamic=False)
            calls[arm] = lambda forward=forward: forward(inputs, use_cache=False).last_hidden_state
            out = calls[arm]()
            errors[arm] = ((out.double() - exact).norm() / exact.norm()).item()
            if ARMS[arm] is not None:
                site = fxfuse.reports()[-1].sites[0]
                kernels[arm] = f"{site.kernel}/{site.weights}"
        times: dict[str, list[float]] = {arm: [] for arm in calls}
        end = time.perf_counter() + args.seconds
        turn = 0
        while time.perf_counter() < end or turn < 5:
            order = list(calls)[turn % len(calls) :] + list(calls)[: turn % len(calls)]
            for arm in order:
                start = time.perf_counter()
                calls[arm]()
                times[arm].append(time.perf_counter() - start)
            turn += 1
    medians = {arm: statistics.median(t) * 1e3 for arm, t in times.items()}
    row = {"dtype": dtype, "rows": rows, "ms": medians, "error": errors, "kernels": kernels, "turns": turn}
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def show(results: list[dict[str, Any]], arms: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Forward time, ratio to Inductor's default (above 1: faster); relative error against float64")
    for name in ("dtype", "rows", "inductor ms", *(a for a in arms if a != "inductor"), "kernel"):
        table.add_column(name, justify="right")
    for r in results:
        base = r["ms"]["inductor"]
        cells = [f"{base / r['ms'][a]:.2f}x  {r['error'][a]:.1e}" for a in arms if a != "inductor"]
        kernels = ", ".join(dict.fromkeys(r["kernels"].values()))
        table.add_row(r["dtype"], str(r["rows"]), f"{base:.2f}  {r['error']['inductor']:.1e}", *cells, kernels)
    Console(width=170).print(table)


def environment(isa: str | None) -> dict[str, Any]:
    import torch

    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "onednn_max_cpu_isa": isa,
    }


if __name__ == "__main__":
    sys.exit(main())
