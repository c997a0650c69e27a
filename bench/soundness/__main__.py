"""Soundness fuzz: random programs, rewritten by fxfuse and compared with eager PyTorch. Zero may differ.

    python -m bench.soundness --graphs 20000 --seed 0 --workers 2      # the totals; exit code 1 where one is wrong
    python -m bench.soundness --graphs 2000 --inductor 500             # 500 of the rewritten ones through Inductor, too
    python -m bench.soundness --prove                                  # would it find something? lifts each safeguard
    python -m bench.soundness --show 123                               # one program, its report and its verdict

Each program is built of patterns in random spellings with random edits, and of whatever stands around them; equal
seeds give equal programs. A failure is shrunk to a script that runs by itself, saved under --scripts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path

from bench.soundness.totals import Totals
from bench.soundness.worker import Task, one, work


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="the first index")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--dynamo", type=float, default=0.1, help="share of programs that Dynamo captures")
    parser.add_argument("--aten", type=float, default=0.05, help="share of programs that are searched as ATen graphs")
    parser.add_argument("--inductor", type=int, default=0, help="how many rewritten graphs Inductor compiles")
    parser.add_argument("--scripts", type=Path, default=Path("soundness-failures"), help="where repro scripts go")
    parser.add_argument("--prove", action="store_true", help="lift each safeguard in turn")
    parser.add_argument("--only", nargs="+", default=[], help="with --prove: these safeguards")
    parser.add_argument("--show", type=int, help="print one program and what came of it")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    task = Task(args.seed, args.graphs, args.workers, args.start, args.dynamo, args.aten, args.scripts)
    if args.show is not None:
        return show(task, args.show)
    if args.prove:
        from bench.soundness.prove import prove

        return prove(task, args.only, args.json)
    totals = run(task)
    if args.inductor:
        from bench.soundness.inductor import through_inductor

        through_inductor(task, args.inductor, totals)
    totals.show(args.seed)
    if args.json:
        args.json.write_text(json.dumps({"seed": args.seed, **totals.as_json()}, indent=1), encoding="utf-8")
    return int(bool(totals.wrong or totals.crashes))


def run(task: Task) -> Totals:
    """All workers of a run, each a process; their totals in one."""
    start = time.perf_counter()
    totals = Totals()
    if task.workers == 1:
        totals.add(work(task))
    else:
        with multiprocessing.get_context("spawn").Pool(task.workers) as pool:
            for part in pool.starmap(work, [(task, worker) for worker in range(task.workers)]):
                totals.add(part)
    totals.seconds = time.perf_counter() - start
    return totals


def show(task: Task, index: int) -> int:
    """One program, for a person to read."""
    from bench.soundness.patterns import everything

    program, setting, verdict = one(task, index, everything())
    print(f"# {', '.join(program.focus)}\n# {setting}")
    print("\n".join(f"{o.name} = {o.text()}" for o in program.operands), program.source, sep="\n\n")
    print(verdict.fused.report if verdict.fused is not None else "")
    print(verdict.wrong or verdict.crash or verdict.skipped or "right")
    return int(verdict.failed)


if __name__ == "__main__":
    sys.exit(main())
