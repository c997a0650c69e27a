"""`fxfuse bench op`: one site by itself, in every arm, timed in turns on weights that no cache holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fxfuse import library
from fxfuse.benchmarks import arms as known
from fxfuse.benchmarks.arms import INDUCTOR, Arm
from fxfuse.benchmarks.ready import Ready, References, absent_from, unmet
from fxfuse.benchmarks.ready import ready as make_ready
from fxfuse.benchmarks.sets import Subject, subject
from fxfuse.benchmarks.shapes import DTYPES, WIDTHS, OpCell
from fxfuse.checking.running import tensors_in
from fxfuse.errors import first_line
from fxfuse.numerics.contract import Errors, errors, worst
from fxfuse.numerics.exact import NotMeasured
from fxfuse.tuning.site import AGREES
from fxfuse.tuning.timing import Bench, Call

Progress = Callable[[str], None]


def arms_of(pattern: str) -> list[Arm]:
    """Every arm that a pattern has: the general ones, and one for each of its kernels."""
    return [*known.ARMS[known.OP], *known.kernel_arms(library.lookup(pattern, "--pattern"))]


@torch.no_grad()
def measure(
    cell: OpCell, arms: Sequence[Arm], device: torch.device, bench: Bench, progress: Progress, inner: str = INDUCTOR
) -> dict[str, Any]:
    """The figures of one cell: of each arm its times and errors, or why it has none.

    Raises:
        TuningError: the weights do not fit into memory often enough.
        OptionError: the pattern has a dimension that the shape does not name.
    """
    pattern = library.lookup(cell.pattern, "--pattern")
    dtype = getattr(torch, DTYPES[cell.dtype])
    made = subject(pattern, WIDTHS[cell.width], cell.rows, dtype, device)
    number = bench.sets(made.weight_bytes, device)
    unable = unmet(made, inner) if any(arm.kernel for arm in arms) else {}
    skipped = {arm.name: why for arm in arms if (why := absent_from(arm, made, device, inner, unable)) is not None}
    running = [arm for arm in arms if arm.name not in skipped]
    reference = References(made, number)
    counter = FlopCounterMode(display=False)
    with counter:
        eager = tensors_in(reference.modules[0](*made.inputs))
    ready: dict[str, Ready] = {}
    for arm in running:
        progress(arm.name)
        try:
            ready[arm.name] = make_ready(arm, made, reference, number, inner)
        except Exception as error:  # whatever an arm's compiler or launch raises; the others are measured
            skipped[arm.name] = first_line(error)
    exact = _exact(made)
    own = _errors(eager, eager, exact if exact is not None else eager).eager
    found: dict[str, Errors] = {}
    for name, one in list(ready.items()):
        found[name] = _errors(one.results, eager, exact if exact is not None else eager)
        if not found[name].fused.rms <= AGREES:
            skipped[name] = f"its result is off by {found[name].fused.rms:.1e}"
            del ready[name]
    progress("timing")
    calls = {name: one.call for name, one in ready.items()}
    times = bench.arms(calls, number, device)
    launched = bench.arms(_synchronised(calls), number, torch.device("cpu")) if device.type == "cuda" else {}
    results = sum(t.nbytes for t in eager)
    figures = {}
    for name, one in ready.items():
        figures[name] = {
            "ms": times[name].ms, "p20": times[name].p20, "p80": times[name].p80,
            "error_max": found[name].fused.max, "error_rms": found[name].fused.rms,
            "within": found[name].within,
        } | ({"ran": one.ran} if one.ran else {})  # fmt: skip
        if name in launched:
            timed = launched[name]
            figures[name] |= {"launched_ms": timed.ms, "launched_p20": timed.p20, "launched_p80": timed.p80}
    return {
        "sets": number,
        "bytes": made.weight_bytes + sum(t.nbytes for t in made.inputs) + results,
        "flops": counter.get_total_flops(),
        "against": "float64" if exact is not None else "eager",
        "eager_error_max": own.max,
        "eager_error_rms": own.rms,
        "arms": figures,
        "skipped": skipped,
    }  # fmt: skip


def _synchronised(calls: Mapping[str, Call]) -> dict[str, Call]:
    """The same calls, each waited for: with what it costs to launch kernels from Python."""

    def waited(call: Call) -> Call:
        def run(number: int) -> None:
            call(number)
            torch.cuda.synchronize()

        return run

    return {name: waited(call) for name, call in calls.items()}


def _exact(made: Subject) -> tuple[Tensor, ...] | None:
    try:
        return made.exact()
    except NotMeasured:
        return None


def _errors(results: Sequence[Tensor], eager: Sequence[Tensor], exact: Sequence[Tensor]) -> Errors:
    return worst(errors(*three) for three in zip(results, eager, exact, strict=True))
