"""The record of this machine as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fxfuse.diagnosis.record import BROKEN, RUNS
from fxfuse.results import LEFT_ALONE, Results

_STYLES = {RUNS: "green", BROKEN: "red"}


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print the whole record, what is broken last."""
    versions = {name: version or "not installed" for name, version in found["versions"].items()}
    for name in ("CUDA of torch", "ROCm of torch"):
        if found["versions"][name] is None:
            versions.pop(name)
    console.print(_pairs("versions", versions))
    console.print(_pairs("cpu", found["cpu"]))
    for card in found["cards"]:
        console.print(_pairs(card["device"], {k: v for k, v in card.items() if k != "device"}))
    if not found["cards"]:
        console.print("no CUDA device\n")
    packs = {
        name: f"{pack['patterns']} patterns" if not pack["error"] else f"[red]{escape(pack['error'])}[/]"
        for name, pack in found["packs"].items()
    }
    console.print(_pairs("packs", packs))
    console.print(_kernels(found["patterns"]))
    kept = found["results"]
    counts = f"{kept['entries']} ({kept['of this machine']} of this machine, {kept['of other versions']} outdated)"
    console.print(_pairs("results", {"folder": kept["folder"], "measurements": counts}))
    for problem in found["problems"]:
        console.print(f"broken: {problem}", style="red", markup=False, highlight=False)
    if not found["problems"]:
        console.print("nothing is broken", style="green")


def _pairs(title: str, pairs: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, title=title, title_justify="left", title_style="bold")
    table.add_column(min_width=24)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(name, "none" if value is None else str(value))
    table.add_section()
    return table


def _kernels(patterns: Mapping[str, Any]) -> Table:
    table = Table(
        box=None, header_style="bold", pad_edge=False, title="kernels", title_justify="left", title_style="bold"
    )
    for name in ("pattern", "kernel", "default", "backward", "device", "here", "needs, or why not"):
        table.add_column(name, overflow="fold")
    for full, pattern in patterns.items():
        name = full if pattern["active"] else f"{full} (add)"
        if not pattern["kernels"]:
            table.add_row(name, "none: its reference is put back where it is named", style="dim")
        for kernel, made in pattern["kernels"].items():
            marks = ("yes" if made["default"] else "no", "yes" if made["backward"] else "no")
            for device, state in made["devices"].items():
                style = _STYLES.get(state["state"], "dim")
                table.add_row(name, kernel, *marks, device, f"[{style}]{state['state']}[/]", escape(state["why"]))
                name, kernel, marks = "", "", ("", "")
    return table


def show_results(known: Results, console: Console) -> None:
    """Print each measurement: where, what, and how many times as fast as left alone each arm was."""
    if not known.entries:
        console.print("nothing was measured; `fxfuse tune` does it")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("pattern", "variant", "machine, shape", "left alone, ms", "times as fast"):
        table.add_column(name, overflow="fold")
    for entry in known.entries:
        arms = sorted((a for a in entry.arms if a != LEFT_ALONE), key=lambda a: entry.arms[a].ms)
        table.add_row(
            entry.shape.pattern,
            " ".join(f"{name}={label}" for name, label in entry.shape.variant),
            f"{entry}" + ("" if entry in known.usable else " (outdated: other versions)"),
            f"{entry.arms[LEFT_ALONE].ms:.4g}",
            ", ".join(f"{arm} {entry.ratio(arm):.2f}x" for arm in arms),
        )
    if known.entries:
        console.print(table)
    for problem in known.problems:
        console.print(f"not read: {problem}", style="red", markup=False, highlight=False)
