"""Runs the cells of a suite one by one: those that are done are left out, time is kept to, each is written at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fxfuse import results
from fxfuse.benchmarks import apart, checks, model, op
from fxfuse.benchmarks.arms import ARMS, BASE, EAGER, INDUCTOR, MODEL, Arm, chosen
from fxfuse.benchmarks.budget import Budget
from fxfuse.benchmarks.environment import load
from fxfuse.benchmarks.errors import BenchError
from fxfuse.benchmarks.models import MODELS, missing
from fxfuse.benchmarks.rates import copy_rate, matmul_rate
from fxfuse.benchmarks.records import File, key
from fxfuse.benchmarks.shapes import DTYPES, WIDTHS, OpCell, op_cells
from fxfuse.errors import FxfuseError, unknown
from fxfuse.machine import machine_of
from fxfuse.tuning import Bench, tune_pattern

OPS, MODELS_OF = ("op", "tune"), ("model", "compile", "memory")
"""Suites of sites, and of models."""

Said = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        arms: by name; None: all.
        resume: leave out what the file has.
        seconds: for the turns of one cell (op), or of one arm (model).
        cache: bytes of the last-level cache; None: as the machine tells.
        inner: what compiles every arm.
    """

    device: torch.device
    patterns: Sequence[str] = ("rms_norm_gated_mlp",)
    widths: Sequence[str] = ()
    rows: Sequence[int] = ()
    dtypes: Sequence[str] = ()
    models: Sequence[str] = ()
    arms: Sequence[str] | None = None
    layers: int | None = None
    vocabulary: int | None = None
    prompt: int = 64
    seconds: float = 3.0
    cache: int | None = None
    inner: str = INDUCTOR
    resume: bool = False


@dataclass
class Outcome:
    """What became of the cells of a run. ``failed``: key and why."""

    done: int = 0
    kept: int = 0
    left: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.done, self.kept, self.left = self.done + other.done, self.kept + other.kept, self.left + other.left
        self.failed += other.failed


@dataclass(frozen=True)
class Task:
    """One cell to measure: ``run`` writes what it finds to where ``done`` looks."""

    key: str
    done: Callable[[], bool]
    run: Callable[[Said], None]


def run_all(tasks: Sequence[Task], *, resume: bool, budget: Budget, on: Callable[[int, str], None]) -> Outcome:
    """Run tasks in order, less those that are done where ``resume`` is asked for.

    Args:
        on: is told how many are behind and what is being measured.
    """
    outcome = Outcome()
    for number, task in enumerate(tasks):
        if resume and task.done():
            outcome.kept += 1
            continue
        if not budget.allows:
            outcome.left += 1
            continue
        on(number, task.key)
        try:
            with budget.spending():
                task.run(lambda word, n=number, k=task.key: on(n, f"{k}, {word}"))  # type: ignore[misc]
        except FxfuseError as error:
            outcome.failed.append((task.key, str(error)))
        else:
            outcome.done += 1
    return outcome


def check(suite: str, plan: Plan) -> None:
    """Raise for a name that is not there, before anything is measured.

    Raises:
        BenchError: an arm, width, dtype or model.
        OptionError: a pattern.
    """
    for given, flag, kind, valid in (
        (plan.widths, "--widths", "width", WIDTHS),
        (plan.dtypes, "--dtypes", "dtype", DTYPES),
        (plan.models, "--models", "model", MODELS),
    ):
        for name in given:
            if name not in valid:
                raise BenchError(f"{flag}: " + unknown(kind, name, valid))
    for pattern in plan.patterns if suite in OPS else ():
        chosen(op.arms_of(pattern), plan.arms)
    if suite in MODELS_OF:
        chosen(ARMS[MODEL], plan.arms)


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


def _has(file: File, cell: str, arms: Sequence[Arm]) -> Callable[[], bool]:
    return lambda: not file.lacks(cell, [arm.name for arm in arms])


def _with_baselines(arms: list[Arm], known: Sequence[Arm]) -> list[Arm]:
    """With the arms that ratios are to, whoever was asked for."""
    wanted = {arm.name for arm in arms} | {EAGER, BASE}
    return [arm for arm in known if arm.name in wanted]


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
            yield Task(name, lambda name=name: name in file.steps, run)  # type: ignore[misc]


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


def _give_back(device: torch.device) -> None:
    """What one cell compiled and allocated is not held during the next."""
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def words(outcome: Outcome) -> Iterable[str]:
    """What became of a run, as lines."""
    parts = [f"{outcome.done} measured"]
    parts += [f"{outcome.kept} were there already"] if outcome.kept else []
    parts += [f"{outcome.left} left out: the time was up; --resume measures them"] if outcome.left else []
    yield ", ".join(parts)
    for name, why in outcome.failed:
        yield f"{name} was not measured: {why}"
