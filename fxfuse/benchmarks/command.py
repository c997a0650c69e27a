"""`fxfuse bench`: plans what was asked for, shows how it goes, and answers with an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fxfuse.benchmarks import everything, op, page, records, shapes, suites, tables
from fxfuse.benchmarks.arms import ARMS, MODEL, absent
from fxfuse.benchmarks.budget import Budget
from fxfuse.benchmarks.environment import check_device, environment
from fxfuse.benchmarks.plan import MODELS_OF, Plan, check
from fxfuse.benchmarks.records import File
from fxfuse.benchmarks.running import Outcome, run_all, words

PATTERNS = ("rms_norm_gated_mlp",)


def run(args: argparse.Namespace) -> int:
    """Do what the arguments ask for; 1 where a cell could not be measured, or a page is not as it would be made."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    if args.suite == "page":
        return _page(args, console)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    plan = plan_of(args)
    for suite in everything.SUITES if args.suite == "all" else (args.suite,):
        check(suite, plan)
    if args.list:
        _show_arms(args.suite, plan, console)
        return 0
    file = records.opened(args.results, environment(plan.device, plan.inner), fresh=args.fresh)
    if args.suite in ("op", "all"):
        suites.measure_rates(plan, file)
    one = partial(_suite, file, console)
    if args.suite == "all":
        limit = everything.CUDA_SECONDS if plan.device.type == "cuda" and args.budget is None else args.budget
        outcome = everything.run_everything(plan, file, limit, one, partial(console.print, soft_wrap=True))
    else:
        outcome = one(args.suite, plan, Budget(args.budget))
    for section in tables.SECTIONS[args.suite](file) if args.suite in tables.SECTIONS else ():
        console.print(section, "\n", soft_wrap=True)
    for line in words(outcome):
        console.print(line, soft_wrap=True)
    if args.suite not in ("kernels", "tune"):
        console.print(f"figures: {file.path}; `fxfuse bench page` makes tables of them", soft_wrap=True)
    return 1 if outcome.failed else 0


def plan_of(args: argparse.Namespace) -> Plan:
    """What is to be measured: what was asked for, and the device's usual extent for the rest.

    Raises:
        BenchError: the device cannot be used here.
    """
    device = check_device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    usual = shapes.extent(device.type, quick=args.quick)

    def given(name: str, otherwise: object) -> object:
        value = getattr(args, name, None)
        return otherwise if value is None else value

    asked: dict[str, object] = {
        "patterns": given("pattern", PATTERNS),
        "widths": given("widths", usual.widths),
        "rows": given("rows", usual.rows),
        "dtypes": given("dtypes", usual.dtypes),
        "models": given("models", usual.models),
        "layers": given("layers", usual.layers),
        "vocabulary": given("vocabulary", usual.vocabulary),
        "prompt": given("prompt_tokens", usual.prompt),
        "seconds": given("seconds", usual.seconds),
        "arms": given("arms", None),
        "inner": args.inner,
    }
    mib = getattr(args, "cache_mib", None)
    return Plan(device, cache=mib << 20 if mib else None, resume=args.resume, **asked)  # type: ignore[arg-type]  # as the parser typed them


def _suite(file: File, console: Console, suite: str, plan: Plan, budget: Budget) -> Outcome:
    """One suite, with a line for each cell, and a bar on a terminal."""
    todo = suites.tasks(suite, plan, file, budget)
    with _shown(console, suite, len(todo)) as on:
        return run_all(todo, resume=plan.resume, budget=budget, on=on)


@contextmanager
def _shown(console: Console, suite: str, total: int) -> Iterator[Callable[[int, str], None]]:
    columns = (
        TextColumn("{task.fields[suite]}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )  # fmt: skip
    said: list[int] = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=total, suite=suite)

        def on(number: int, what: str) -> None:
            progress.update(bar, completed=number, description=what)
            if not console.is_terminal and number not in said:
                said.append(number)
                console.print(f"{number + 1} of {total}: {what}", soft_wrap=True)

        yield on


def _show_arms(suite: str, plan: Plan, console: Console) -> None:
    """Every arm, and why which of them cannot run here; what a kernel requires of a site is told when it is there."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("suite", "arm", "what it is", "here"):
        table.add_column(name, overflow="fold")
    for one in everything.SUITES if suite == "all" else (suite,):
        for arm in ARMS[MODEL] if one in MODELS_OF else [a for p in plan.patterns for a in op.arms_of(p)]:
            table.add_row(one, arm.name, arm.what, absent(arm, plan.device.type, plan.inner) or "runs")
    console.print(table)


def _page(args: argparse.Namespace, console: Console) -> int:
    changed = page.write(args.results, args.page, check=args.check)
    for path in changed:
        console.print(f"{'would change' if args.check else 'written'}: {path}", soft_wrap=True)
    if not changed:
        console.print("nothing changed")
    return 1 if args.check and changed else 0
