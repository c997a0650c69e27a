"""The results of checks as text: a table, and below it each failure with a script that shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fxfuse.checking.failures import Failure
from fxfuse.checking.run import Result

MOST_SHOWN = 3
"""Failures of one kind that are shown in full; the others are counted."""


def show(results: Sequence[Result], console: Console) -> None:
    """Print the table and the failures."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("pattern", overflow="fold")
    for name in ("variants", "positives", "respellings", "mutants refused", "kernels", "numerics", "gradients", "s"):
        table.add_column(name, justify="right")
    for result in results:
        style = "" if result.passed else "red"
        table.add_row(*_row(result), style=style)
    console.print(table)
    for result in results:
        _details(result, console)
    failed = [r.pattern for r in results if not r.passed]
    count = sum(len(r.failures) for r in results)
    if failed:
        console.print(
            f"\n{count} failures in {len(failed)} of {len(results)} patterns: {', '.join(failed)}", style="red"
        )
    else:
        console.print(f"\n{len(results)} of {len(results)} patterns passed.", style="green")


def _row(result: Result) -> Iterable[str]:
    positives, mutants, kernels = result.positives, result.mutants, result.rewrites
    yield result.pattern
    yield f"{result.ways}" + (f" ({len(positives.excluded)} excluded)" if positives.excluded else "")
    yield f"{positives.right}/{positives.tried}"
    yield f"{positives.respelled_right}/{positives.respelled}"
    yield f"{sum(mutants.refused.values())}/{mutants.tried}"
    yield f"{len(kernels.ran)}/{len({*kernels.ran, *kernels.skipped})}"
    for found in (kernels.numerics, kernels.gradients):
        ratios = [e.ratio for errors in found.values() for e in errors]
        yield f"{max(ratios):.0%} of allowed" if ratios else "-"
    yield f"{result.seconds:.1f}"


def _details(result: Result, console: Console) -> None:
    skipped = {n: why for n, why in result.rewrites.skipped.items() if n not in result.rewrites.numerics}
    for name, why in skipped.items():
        reasons = "; ".join(why[:MOST_SHOWN])
        console.print(f"{result.pattern}: kernel {name} did not run here: it {reasons}", style="dim", highlight=False)
    for note in result.notes[:MOST_SHOWN]:
        console.print(f"{result.pattern}: {note}", style="dim", highlight=False)
    alike: dict[tuple[str, str], list[Failure]] = {}
    for failure in result.failures:
        alike.setdefault((failure.check, failure.what), []).append(failure)
    shown: Counter[str] = Counter()
    for (check, what), failures in alike.items():
        shown[check] += 1
        if shown[check] > MOST_SHOWN:
            continue
        first, more = failures[0], f", and {len(failures) - 1} more" if len(failures) > 1 else ""
        console.print()
        console.print(Text(f"{result.pattern}: {check}", style="bold red"))
        console.print(Text(f"  {what}\n  in {first.way} (seed {first.seed}){more}"), soft_wrap=True)
        if first.repro:
            console.print(Text(f"\n{first.repro}"), soft_wrap=True)
    for check, count in shown.items():
        if count > MOST_SHOWN:
            console.print(f"  ... and {count - MOST_SHOWN} more failures of {check}; --json has all of them")
