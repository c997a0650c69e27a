"""The figures as tables, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.reuse.arms import ARMS

HEAD = (
    "| model | graph | layers | arm | cold compile, s | of it Dynamo | processor, s | a call, ms "
    "| memory: compile, MiB | a call, MiB | regions |"
)


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A Markdown table."""
    out = [HEAD, "|" + "---|" * 11]
    for row in rows:
        regions = ", ".join(f"x{count}" for count in row["regions"]) or "-"
        taken = (f"{row['seconds']:.1f}", f"{row['tracing_seconds']:.1f}", f"{row['processor_seconds']:.1f}")
        figures = (*taken, f"{row['ms']:.2f}", f"{row['compile_mib']:.0f}", f"{row['call_mib']:.1f}")
        cells = (row["model"], row["graph"], str(row["layers"]), ARMS[row["arm"]], *figures, regions)
        out.append("| " + " | ".join(cells) + " |")
    return out


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    print("\n".join(lines(rows)))
