"""`fxfuse bench op`: one site by itself, in every arm, timed in turns on weights that no cache holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxfuse
from fxfuse import library
from fxfuse.benchmarks import arms as known
from fxfuse.benchmarks.arms import EAGER, INDUCTOR, KERNEL, Arm, absent, compiled
from fxfuse.benchmarks.by_hand import maker
from fxfuse.benchmarks.sets import Subject, subject, tensors_in
from fxfuse.benchmarks.shapes import DTYPES, WIDTHS, OpCell
from fxfuse.errors import first_line
from fxfuse.kernels import candidates
from fxfuse.numerics.contract import Errors, errors, worst
from fxfuse.numerics.exact import NotMeasured
from fxfuse.tuning.run import sites_of
from fxfuse.tuning.site import AGREES
from fxfuse.tuning.timing import Bench, Call

Progress = Callable[[str], None]


def arms_of(pattern: str) -> list[Arm]:
    """Every arm that a pattern has: the general ones, and one for each of its kernels."""
    return [*known.ARMS[known.OP], *known.kernel_arms(library.lookup(pattern, "--pattern"))]


@dataclass
class _Ready:
    """An arm that runs: its calls by number of set, what it gave on set 0, and what fxfuse says that it ran."""

    call: Call
    results: tuple[Tensor, ...]
    ran: str = ""


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
    skipped = {arm.name: why for arm in arms if (why := _absent(arm, made, device, inner)) is not None}
    running = [arm for arm in arms if arm.name not in skipped]
    reference = _References(made, number)
    counter = FlopCounterMode(display=False)
    with counter:
        eager = tensors_in(reference.modules[0](*made.inputs))
    ready: dict[str, _Ready] = {}
    for arm in running:
        progress(arm.name)
        try:
            ready[arm.name] = _ready(arm, made, reference, number, inner)
        except Exception as error:  # whatever an arm's compiler or launch raises; the others are measured
            skipped[arm.name] = first_line(error)
    exact = _exact(made)
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
        "eager_error_max": found[EAGER].eager.max if EAGER in found else _own(eager, exact).max,
        "eager_error_rms": found[EAGER].eager.rms if EAGER in found else _own(eager, exact).rms,
        "arms": figures,
        "skipped": skipped,
    }  # fmt: skip


class _References:
    """The reference with each set of weights."""

    def __init__(self, made: Subject, number: int) -> None:
        kind = made.module_class()
        self.modules: list[nn.Module] = [made.module(kind, made.weights()) for n in range(number)]

    def weights(self, number: int) -> dict[str, Tensor]:
        return dict(self.modules[number].named_parameters())


def _absent(arm: Arm, made: Subject, device: torch.device, inner: str) -> str | None:
    """Why an arm cannot run this, found out before anything is compiled."""
    why = absent(arm, device.type, inner)
    if why is None and arm.module != "reference":
        found = maker(arm.module, made.example.pattern.name)
        why = found if isinstance(found, str) else None
    if why is None and arm.kernel:
        why = unmet(made, inner).get(arm.kernel)
    return why


def unmet(made: Subject, inner: str) -> dict[str, str]:
    """Which kernels cannot run the subject, and why not."""
    pattern = made.example.pattern
    model = made.module(made.module_class(), made.weights())
    found = sites_of(model, made.inputs, {}, [pattern], inner, None)
    if not found:
        return {name.removeprefix(KERNEL): "the pattern does not match its own reference here" for name in
                (arm.name for arm in known.kernel_arms(pattern))}  # fmt: skip
    site = next(iter(found.values()))
    problems = [(one, problem or one.unloadable) for one, problem in candidates(pattern, site.facts)]
    return {one.name: problem for one, problem in problems if problem is not None}


def _ready(arm: Arm, made: Subject, reference: _References, number: int, inner: str) -> _Ready:
    """The arm compiled and run once: on every set, where it moves weights, so that none moves under a CUDA graph."""
    pattern = made.example.pattern
    modules = reference.modules
    if arm.module != "reference":
        build = maker(arm.module, pattern.name)
        assert not isinstance(build, str), "such an arm was left out"
        modules = [build(reference.weights(n)) for n in range(number)]

    def run(module: nn.Module, *inputs: Tensor) -> Any:
        return module(*inputs)

    before = len(fxfuse.reports())
    function = compiled(arm, run, pattern, inner=inner, fullgraph=True)
    inputs = made.inputs

    def call(n: int) -> Any:
        return function(modules[n], *inputs)

    results = tensors_in(call(0))
    ran = _ran(before) if arm.ours else ""
    for n in range(1, number if arm.ours else 1):
        call(n)
    return _Ready(call, tuple(t.clone() for t in results), ran)


def _ran(before: int) -> str:
    """What fxfuse's report of the compile says that it did with the site."""
    reports = fxfuse.reports()
    report = reports[before] if before < len(reports) else reports[-1]
    if not report.sites:
        return "no site"
    site = report.sites[0]
    return f"{site.kernel} ({site.weights})" if site.outcome == "rewritten" else f"left alone: {site.reason}"


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


def _own(eager: Sequence[Tensor], exact: Sequence[Tensor] | None) -> Any:
    return _errors(eager, eager, exact if exact is not None else eager).eager
