"""The results as tables on a terminal, and as records."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench.matchers.arms.arm import Arm, Outcome
from bench.matchers.perturbations import Case
from bench.matchers.scaling import Sized
from bench.matchers.sites import Row, totals
from bench.matchers.timing import pace

CONSOLE = Console(width=170)


def show_sites(rows: Sequence[Row], arms: Sequence[Arm]) -> None:
    table = Table(title="Sites found, of 4 blocks; a cross counts blocks whose function changed")
    table.add_column("perturbation")
    table.add_column("rightful", justify="right")
    for arm in arms:
        table.add_column(arm.name, justify="right")
    for row in rows:
        rightful = "0 to 4" if row.case.free else str(row.case.sites)
        table.add_row(row.case.name, rightful, *(_cell(row.outcomes[a.name], row.case) for a in arms))
    summed = [totals(rows, arm.name) for arm in arms]
    table.add_section()
    table.add_row("rightful sites found", str(summed[0][1]), *(str(found) for found, _, _ in summed))
    table.add_row("blocks with another function", "0", *(str(wrong) for _, _, wrong in summed))
    patterns = [str(max(row.outcomes[arm.name].patterns for row in rows)) for arm in arms]
    table.add_row("patterns given (most in a row)", "", *patterns)
    CONSOLE.print(table)
    for arm in arms:
        CONSOLE.print(f"{arm.name}: {arm.given}", soft_wrap=True)


def _cell(outcome: Outcome, case: Case) -> str:
    if outcome.failed:
        return f"{outcome.sites} failed"
    wrong = f" ✗{outcome.wrong}" if outcome.wrong else ""
    return f"{outcome.sites}{wrong}"


def show_words(rows: Sequence[Row], arms: Sequence[Arm]) -> None:
    table = Table(title="What was said of blocks not found: unasked, or characters of text with the debugging help on")
    table.add_column("perturbation")
    for arm in arms:
        table.add_column(arm.name)
    for row in rows:
        table.add_row(row.case.name, *(_words(row.outcomes[a.name], row.case) for a in arms))
    CONSOLE.print(table)


def _words(outcome: Outcome, case: Case) -> str:
    if outcome.sites >= len(case.bodies):
        return ""
    if outcome.said:
        return outcome.said if len(outcome.said) < 40 else f"{len(outcome.said)} chars"
    return f"nothing ({len(outcome.asked):,})" if outcome.asked else "nothing"


def show_times(results: Sequence[Sized]) -> None:
    table = Table(title="Match time: median milliseconds of processor time, and for 1,000 nodes of the arm's own graph")
    sizes = list(dict.fromkeys(r.size for r in results))
    table.add_column("matcher")
    for size in sizes:
        table.add_column(f"about {size:,} nodes", justify="right")
    table.add_column(f"{sizes[-1]:,} / {sizes[0]:,}, per node", justify="right")
    for arm in dict.fromkeys(r.arm for r in results):
        mine = [r for r in results if r.arm == arm]
        timed = {r.size: r for r in mine if r.times.over is None and r.times.wall}
        ratio = ""
        if sizes[0] in timed and sizes[-1] in timed:
            ratio = f"{timed[sizes[-1]].per_thousand / timed[sizes[0]].per_thousand:.2f}"
        table.add_row(arm, *(time_cell(r) for r in mine), ratio)
    CONSOLE.print(table)


def time_cell(r: Sized) -> str:
    if r.times.over is not None:
        return f"over {r.times.over:.0f} s"
    return f"{r.times.process_seconds * 1e3:,.1f}  {r.per_thousand:.2f}/k  ({r.times.result} sites)"


def show_pace() -> None:
    CONSOLE.print(f"Pace: 200,000 dictionary reads in Python take {pace():.1f} ms of processor time just now.")


def show_smollm2(results: Sequence[Sized]) -> None:
    table = Table(title="SmolLM2-135M, medians of interleaved calls")
    for name in ("matcher", "nodes", "sites", "ms", "process ms", "ms / 1,000 nodes"):
        table.add_column(name, justify="left" if name == "matcher" else "right")
    for r in results:
        if r.times.over is not None:
            table.add_row(r.arm, str(r.nodes), "", f"over {r.times.over:.0f} s", "", "")
            continue
        milliseconds = (r.times.seconds * 1e3, r.times.process_seconds * 1e3, r.per_thousand)
        table.add_row(r.arm, str(r.nodes), str(r.times.result), *(f"{t:,.1f}" for t in milliseconds))
    CONSOLE.print(table)


def show_dialects(results: Sequence[Mapping[str, Any]]) -> None:
    kinds = list(results[0]["found"])
    table = Table(title="One pattern, unchanged: sites found of sites there are")
    for name in ("model", "dtype", *kinds):
        table.add_column(name, justify="right" if name in kinds else "left")
    for r in results:
        table.add_row(r["model"], r["dtype"], *(f"{r['found'][kind]} of {r['sites']}" for kind in kinds))
    CONSOLE.print(table)


# --- records ----------------------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    from importlib import metadata

    names = ("torch", "onnxscript", "onnx", "transformers")
    installed = {d.metadata["Name"] for d in metadata.distributions()}
    return {
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        **{name: metadata.version(name) for name in names if name in installed},
    }


def site_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {
            "case": row.case.name,
            "rightful": row.case.sites,
            "free": row.case.free,
            "arms": {
                name: {
                    "sites": o.sites, "wrong": o.wrong, "errors": o.errors, "said": o.said,
                    "asked_characters": len(o.asked), "patterns": o.patterns, "failed": o.failed,
                }
                for name, o in row.outcomes.items()
            },
        }
        for row in rows
    ]  # fmt: skip


def time_records(results: Sequence[Sized]) -> list[dict[str, Any]]:
    return [
        {
            "arm": r.arm, "size": r.size, "layers": r.layers, "nodes": r.nodes, "sites": r.times.result,
            "wall_seconds": r.times.wall, "process_seconds": r.times.process, "over": r.times.over,
        }
        for r in results
    ]  # fmt: skip
