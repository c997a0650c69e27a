"""One arm, measured in a process of its own: ``python -m bench.reuse.worker CASE ARM THREADS``; prints JSON."""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time

from bench.reuse.memory import allocated_by, peak, reset_peak, resident

CALLS = 30


def main() -> None:
    model_name, graph, layers, arm, threads = sys.argv[1:]
    import torch

    from bench.reuse.arms import Case, call_of, compile_by, load

    torch.set_num_threads(int(threads))
    case = Case(model_name, graph, int(layers))
    torch.compile(lambda x: torch.relu(x) + 1)(torch.ones(4))  # the compiler itself is imported and ready
    torch._dynamo.reset()
    with torch.no_grad():
        model = load(case)
        call = call_of(case, model)
        expected = call(model)
        fast = compile_by(arm, model)
        from torch._dynamo.utils import compilation_time_metrics

        compilation_time_metrics.clear()
        reset_peak()
        before = resident()
        wall, processor = time.perf_counter(), _processor()
        found = call(fast)
        wall, processor = time.perf_counter() - wall, _processor() - processor
        compile_mib = peak() - before
        tracing = sum(sum(compilation_time_metrics.get(name, ())) for name in ("bytecode_tracing", "build_guards"))
        call(fast)
        call_mib = allocated_by(lambda: call(fast))
        taken, eager = [], []
        for _ in range(CALLS):
            for times, run in ((taken, fast), (eager, model) if arm != "by_hand" else ([], fast)):
                start = time.perf_counter()
                call(run)
                times.append(time.perf_counter() - start)
    regions: list[int] = []
    if arm.startswith("fxfuse"):
        import fxfuse

        regions = [region.copies for report in fxfuse.reports() for r in report.reuse for region in r.repeated]
    error = float((found - expected).abs().max() / expected.abs().max())
    print(json.dumps({
        "seconds": wall, "processor_seconds": processor, "tracing_seconds": tracing,
        "ms": statistics.median(taken) * 1e3,
        "eager_ms": statistics.median(eager) * 1e3 if eager else None, "error": error, "regions": regions,
        "compile_mib": compile_mib, "call_mib": call_mib,
        "children_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }))  # fmt: skip


def _processor() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
