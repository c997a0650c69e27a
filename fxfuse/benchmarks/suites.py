"""The cells of each suite, in the order in which they are measured; each is written at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from fxfuse import results
from fxfuse.benchmarks import apart, checks, model, op
from fxfuse.benchmarks.arms import ARMS, BASE, EAGER, MODEL, Arm, chosen
from fxfuse.benchmarks.budget import Budget
from fxfuse.benchmarks.environment import load
from fxfuse.benchmarks.errors import BenchError
from fxfuse.benchmarks.models import missing
from fxfuse.benchmarks.plan import Plan
from fxfuse.benchmarks.rates import copy_rate, matmul_rate
from fxfuse.benchmarks.records import File, key
from fxfuse.benchmarks.running import Said, Task
from fxfuse.benchmarks.shapes import DTYPES, WIDTHS, OpCell, op_cells
from fxfuse.machine import machine_of
from fxfuse.tuning import Bench, tune_pattern


def tasks(suite: str, plan: Plan, file: File, budget: Budget) -> list[Task]:
    """The cells of a suite, in the order in which they are measured."""
    if suite == "kernels":
        return list(_kernel_tasks(plan, file))
    if suite == "tune":
        return list(_tuning_tasks(plan))
    return list(_op_tasks(plan, file) if suite == "op" else _model_tasks(suite, plan, file, budget))


def measure_rates(plan: Plan, file: File) -> None:
    """What the machine can do, where the file does not have it."""
    wanted = {"copy": None, **{dtype: getattr(torch, DTYPES[dtype]) for dtype in plan.dtypes}}
    for name, dtype in wanted.items():
        if name not in file.rates:
            file.rates[name] = round(copy_rate(plan.device) if dtype is None else matmul_rate(plan.device, dtype))
            file.save()


def _op_tasks(plan: Plan, file: File) -> Iterator[Task]:
    bench = Bench(seconds=plan.seconds, cache=plan.cache)
    known = {pattern: op.arms_of(pattern) for pattern in plan.patterns}
    for cell in op_cells(plan.patterns, plan.widths, plan.dtypes, plan.rows):
        arms = _with_baselines(chosen(known[cell.pattern], plan.arms), known[cell.pattern])
        what = {"pattern": cell.pattern, "width": cell.width, "dtype": cell.dtype, "rows": cell.rows}
        name = key("op", what)

        def run(said: Said, cell: OpCell = cell, arms: list[Arm] = arms, what: Any = what, name: str = name) -> None:
            before = load()
            found = op.measure(cell, arms, plan.device, bench, said, plan.inner)
            file.put(name, "op", what, found, before)
            _give_back(plan.device)

        yield Task(name, _has(file, name, arms), run)


def _model_tasks(suite: str, plan: Plan, file: File, budget: Budget) -> Iterator[Task]:
    known = ARMS[MODEL]
    arms = _with_baselines(chosen(known, plan.arms), known)
    for dtype in plan.dtypes:
        for name in plan.models:
            layers, vocabulary = (None, None) if name == "smollm2" else (plan.layers, plan.vocabulary)
            what = {"model": name, "dtype": dtype, "layers": layers or "all", "prompt": plan.prompt}
            cell = key(suite, what)

            def run(
                said: Said, what: Any = what, cell: str = cell, layers: int | None = layers,
                vocabulary: int | None = vocabulary,
            ) -> None:  # fmt: skip
                why = missing(what["model"])
                if why is not None:
                    raise BenchError(why)
                before = load()
                sizes: Any = {
                    "prompt_tokens": plan.prompt,
                    "inner": plan.inner,
                    "layers": layers,
                    "vocabulary": vocabulary,
                }
                if suite == "model":
                    found = model.measure(what, arms, plan.device, seconds=plan.seconds, progress=said, **sizes)
                    file.put(cell, suite, what, found, before)
                else:
                    apart.measure(
                        suite, what, arms, plan.device, progress=said, limit=lambda: budget.left,
                        keep=lambda found: file.put(cell, suite, what, found, before),
                        had=file.cells.get(cell) if plan.resume else None, **sizes,
                    )  # fmt: skip
                _give_back(plan.device)

            yield Task(cell, _has(file, cell, arms), run)


def _kernel_tasks(plan: Plan, file: File) -> Iterator[Task]:
    """Every pattern in every dtype, whatever is timed: these are small."""
    for pattern in checks.patterns():
        for dtype in DTYPES:

            def run(said: Said, pattern: str = pattern, dtype: str = dtype) -> None:
                file.steps.pop(f"kernels/{pattern}/{dtype}", None)
                count = checks.check(pattern, dtype, plan.device, said, inner=plan.inner)
                file.steps[f"kernels/{pattern}/{dtype}"] = f"{count} results within the contract"
                file.save()
                _give_back(plan.device)

            name = f"kernels/{pattern}/{dtype}"
            yield Task(name, lambda name=name: name in file.steps, run)  # type: ignore[misc]  # a default binds


def _tuning_tasks(plan: Plan) -> Iterator[Task]:
    """The same sites as in the op suite, measured for the choice of kernels (``fxfuse tune``)."""
    bench = Bench(seconds=plan.seconds, cache=plan.cache)
    for cell in op_cells(plan.patterns, plan.widths, plan.dtypes, plan.rows):

        def run(said: Said, cell: OpCell = cell) -> None:
            dtype = getattr(torch, DTYPES[cell.dtype])
            how: Any = {"device": plan.device, "bench": bench, "progress": said, "inner": plan.inner}
            tune_pattern(cell.pattern, WIDTHS[cell.width], rows=[cell.rows], dtypes=[dtype], **how)
            _give_back(plan.device)

        yield Task(f"tune/{cell.pattern}/{cell.width}/{cell.dtype}/{cell.rows}", _was_tuned(plan, cell), run)


def _was_tuned(plan: Plan, cell: OpCell) -> Callable[[], bool]:
    here = machine_of(plan.device)
    wanted = (DTYPES[cell.dtype], cell.rows, plan.inner)

    def done() -> bool:
        return any(
            entry.machine == here
            and entry.shape.pattern.rpartition("::")[2] == cell.pattern.rpartition("::")[2]
            and (entry.shape.dtype, entry.shape.rows, entry.shape.inner) == wanted
            and dict(entry.shape.sizes).items() <= WIDTHS[cell.width].items()
            for entry in results.current().usable
        )

    return done


def _has(file: File, cell: str, arms: Sequence[Arm]) -> Callable[[], bool]:
    return lambda: not file.lacks(cell, [arm.name for arm in arms])


def _with_baselines(arms: list[Arm], known: Sequence[Arm]) -> list[Arm]:
    """With the arms that ratios are to, whoever was asked for."""
    wanted = {arm.name for arm in arms} | {EAGER, BASE}
    return [arm for arm in known if arm.name in wanted]


def _give_back(device: torch.device) -> None:
    """What one cell compiled and allocated is not held during the next."""
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
