"""Seconds of a cold compile and milliseconds of a call: one region for all layers, beside the other ways.

    python -m bench.reuse                          # a small Llama, every arm
    python -m bench.reuse --growth 6 60            # how compile time grows with the number of equal layers
    python -m bench.reuse --smollm2                # the demo's model: prefill, and decode with a static cache
    python -m bench.reuse --call-cost              # what a region's call, an operation as written and a kernel cost
    python -m bench.reuse --coverage               # regions and results over a spread of architectures
    python -m bench.reuse --page docs/reuse.md     # the page, from figures written by --json

Every arm runs in a process and with caches of its own, in turns. Seconds are wall time from the call that compiles to
its result, Dynamo's tracing counted in; beside them stands processor time, which others on the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch

from bench.reuse import calls, spread
from bench.reuse.arms import ARMS, Case
from bench.reuse.page import write
from bench.reuse.runs import environment, measure
from bench.reuse.tables import show


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--layers", type=int, default=12, help="of the small Llama (default 12)")
    parser.add_argument("--graphs", nargs="+", choices=["prefill", "decode"], default=["prefill", "decode"])
    parser.add_argument("--growth", nargs="+", type=int, help="several numbers of layers instead, prefill only")
    parser.add_argument("--call-cost", action="store_true", help="of a region's call, an operation, a C++ kernel")
    parser.add_argument("--coverage", nargs="*", metavar="MODEL", help="tiny models of these architectures, or of all")
    parser.add_argument("--smollm2", action="store_true", help="SmolLM2-135M; needs the demo's extra and its model")
    parser.add_argument("--repeats", type=int, default=1, help="processes of each arm (default 1)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="add the figures to this file")
    parser.add_argument("--page", help="write the page from the figures in --json")
    args = parser.parse_args()
    if args.page:
        write(args.page, args.json or "bench/reuse/figures.json")
        return 0
    if args.coverage is not None or args.call_cost:
        _others(args)
        return 0
    rows = []
    for case in _cases(args):
        measured = measure(case, args.arms, args.repeats, args.threads)
        rows += measured
        if args.json:  # after each case, since one may take minutes
            _add(args.json, {"environment": environment(args.threads), "rows": measured})
    show(rows)
    return 0


def _others(args: argparse.Namespace) -> None:
    found: dict[str, Any] = {}
    if args.call_cost:
        torch.set_num_threads(args.threads)
        found["calls"] = calls.call_cost()
        print(calls.line(found["calls"]))
    if args.coverage is not None:
        found["coverage"] = spread.covered(args.coverage)
        print("\n".join(spread.lines(found["coverage"])))
    if args.json:
        _add(args.json, {"environment": environment(args.threads), **found})


def _cases(args: argparse.Namespace) -> list[Case]:
    if args.smollm2:
        return [Case("smollm2", graph) for graph in args.graphs]
    if args.growth:
        return [Case("llama", "prefill", layers) for layers in args.growth]
    return [Case("llama", graph, args.layers) for graph in args.graphs]


def _add(path: str, record: dict[str, Any]) -> None:
    try:
        with open(path, encoding="utf-8") as file:
            records = json.load(file)
    except FileNotFoundError:
        records = []
    with open(path, "w", encoding="utf-8") as file:
        json.dump([*records, record], file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    sys.exit(main())
