"""Derived weights: what every event does to them, what their check costs, what is left of them, and what they win.

    python -m bench.weights --table                 # every event and file under every placement, and the refusals
    python -m bench.weights --cost                  # microseconds of the check of 200 fused sources
    python -m bench.weights --cycles 1000           # models compiled and dropped: tensors and memory that stay
    python -m bench.weights --cycles 300 --stock    # the same with torch's eager backend, in a process of its own
    python -m bench.weights --smollm2 --layers 6    # ratios to Inductor's default, real weights; the demo's extra
    python -m bench.weights --table --cost --page docs/weights.md --json weights.json

Figures of parts that are not asked for are taken from --json, where an earlier run wrote them; the page keeps a part
for which there are none.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--cycles", type=int, metavar="N")
    parser.add_argument("--stock", action="store_true", help="with --cycles: torch's own eager backend instead")
    parser.add_argument("--smollm2", action="store_true")
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=["fp32"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16, 64, 256])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each row count, all arms together")
    parser.add_argument("--resident", action="store_true", help="each arm once more, in a process of its own")
    parser.add_argument("--arm", help="only this arm, and print its resident MB (what --resident starts)")
    parser.add_argument("--isa", help="cap on the instructions that oneDNN may use (ONEDNN_MAX_CPU_ISA)")
    parser.add_argument("--page", type=Path, help="write the page here")
    parser.add_argument("--json", type=Path, help="read figures of an earlier run from here, and write them all")
    args = parser.parse_args()
    if args.isa and os.environ.get("ONEDNN_MAX_CPU_ISA") != args.isa:
        os.environ["ONEDNN_MAX_CPU_ISA"] = args.isa  # oneDNN reads it once, at load
        os.execv(sys.executable, [sys.executable, "-m", "bench.weights", *sys.argv[1:]])
    found: dict[str, Any] = {}
    if args.json and args.json.exists():
        found = json.loads(args.json.read_text(encoding="utf-8"))
    wrong = measure(args, found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.page:
        from bench.weights.page import page

        before = args.page.read_text(encoding="utf-8") if args.page.exists() else ""
        args.page.write_text(page(found, before), encoding="utf-8")
    return int(wrong)


def measure(args: argparse.Namespace, found: dict[str, Any]) -> bool:
    """Run what was asked for, into `found`; whether anything was wrong."""
    import torch

    torch.set_num_threads(args.threads)
    wrong = False
    if args.table:
        from bench.weights.model import PLACEMENTS
        from bench.weights.refused import refusals
        from bench.weights.table import other_calls, rows

        table = [asdict(row) for placement in PLACEMENTS for row in (*rows(placement), *other_calls(placement))]
        refused = [asdict(row) for row in refusals()]
        found.update(table=table, refused=refused)
        bad = [row for row in (*table, *refused) if row["right"]]
        wrong = bool(bad)
        print(f"{len(table)} rows, {len(refused)} refusals, {len(bad)} wrong", *bad, sep="\n")
    if args.cost:
        from bench.weights.cost import costs, packed_sizes

        found.update(cost=[asdict(cost) for cost in costs()], packed=packed_sizes())
        print(*found["cost"], *found["packed"], sep="\n")
    if args.cycles:
        from bench.weights.cycles import cycles

        left = cycles(args.cycles, max(1, args.cycles // 10), stock=args.stock)
        found["stock" if args.stock else "cycles"] = [asdict(one) for one in left]
        print(*left, sep="\n")
    if args.smollm2 and args.arm:
        from bench.weights.smollm2 import resident

        print(resident(args.dtypes[0], args.rows[0], args.arm, args.layers))
    elif args.smollm2:
        from bench.weights.smollm2 import measure as ratios

        new = ratios(args)
        kept = [old for old in found.get("smollm2", ()) if not any(_same(old, one) for one in new)]
        found["smollm2"] = [*kept, *new]
    return wrong


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[key] == other[key] for key in ("dtype", "rows", "layers", "threads", "isa"))


if __name__ == "__main__":
    sys.exit(main())
