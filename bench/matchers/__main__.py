"""fxfuse's matcher beside Inductor's, FX's and onnxscript's: sites under perturbations, and time.

    python -m bench.matchers                       # perturbations, times by size, SmolLM2
    python -m bench.matchers --perturbations       # what each finds when the model is spelled otherwise
    python -m bench.matchers --times               # 1,000 to 100,000 nodes; needs about 4 GB
    python -m bench.matchers --smollm2             # the demo's model, with the demo's extra installed
    python -m bench.matchers --dialects            # one pattern in Dynamo's, export's and the post-grad graph

Every arm has the graph that it is made for and the pattern as well as its interface takes one; the tables say what
that is. Times are medians of interleaved calls. Needs onnxscript and onnx for the arm of that name.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--perturbations", action="store_true")
    parser.add_argument("--times", action="store_true")
    parser.add_argument("--smollm2", action="store_true")
    parser.add_argument("--dialects", action="store_true")
    parser.add_argument("--sizes", nargs="+", type=int, help="nodes (default 1000 10000 100000)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each arm (default 5)")
    parser.add_argument("--cap", type=float, default=60.0, help="seconds after which a call is stopped (default 60)")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    chosen = [name for name in ("perturbations", "times", "smollm2", "dialects") if getattr(args, name)]
    records: dict[str, Any] = {}
    for part in chosen or ("perturbations", "times", "smollm2"):
        records[part] = _PARTS[part](args)
    if args.json:
        from bench.matchers.tables import environment

        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"environment": environment(), **records}, file, indent=1)
    return 0


def _perturbations(args: argparse.Namespace) -> Any:
    from bench.matchers import sites, tables
    from bench.matchers.perturbations import CASES, OTHERS

    arms = sites.all_arms()
    rows = sites.run([*CASES, *OTHERS], arms)
    tables.show_sites(rows, arms)
    tables.show_words(rows, arms)
    return tables.site_records(rows)


def _times(args: argparse.Namespace) -> Any:
    from bench.matchers import scaling, tables

    results = scaling.measure_sizes(tuple(args.sizes or scaling.SIZES), repeats=args.repeats, cap=args.cap)
    tables.show_times(results)
    tables.show_pace()
    return tables.time_records(results)


def _smollm2(args: argparse.Namespace) -> Any:
    from bench.matchers import smollm2, tables

    results = smollm2.measure_smollm2(repeats=3 * args.repeats, cap=args.cap)
    tables.show_smollm2(results)
    tables.show_pace()
    return tables.time_records(results)


def _dialects(args: argparse.Namespace) -> Any:
    from bench.matchers import dialects, tables

    results = dialects.measure_dialects()
    tables.show_dialects(results)
    return results


_PARTS = {"perturbations": _perturbations, "times": _times, "smollm2": _smollm2, "dialects": _dialects}

if __name__ == "__main__":
    sys.exit(main())
