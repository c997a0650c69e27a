"""The record of what of a graph was compiled once and called several times, and where its borders lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RegionRecord:
    """A stretch of a graph that one compiled graph serves.

    Attributes:
        copies: how often the graph calls it.
        nodes: operations of one copy.
        modules: the modules whose forward it runs through, first to last, of its first copy.
        begins, ends: its first and last operation, with the model's own line.
        reads, gives: how many values it takes and hands on.
        seconds: what compiling it took; None where nothing was compiled.
        as_written: why it is run operation by operation and not compiled; empty where it is compiled.
    """

    copies: int
    nodes: int
    modules: tuple[str, ...]
    begins: str
    ends: str
    reads: int
    gives: int
    seconds: float | None = None
    as_written: str = ""


@dataclass(frozen=True)
class ReuseRecord:
    """What was done with one graph: its regions, or the reason why it was left whole.

    ``seconds`` is the time it took to find them. ``as_asked``: nobody wonders why the graph is whole, which is small,
    or whose options say so; the text of a report leaves it out.
    """

    regions: tuple[RegionRecord, ...] = ()
    reason: str = ""
    seconds: float = 0.0
    as_asked: bool = False

    @property
    def repeated(self) -> tuple[RegionRecord, ...]:
        """The regions that are called more than once."""
        return tuple(region for region in self.regions if region.copies > 1)

    @property
    def saved_seconds(self) -> float | None:
        """What the further copies would have taken, at the pace of the first; None where nothing was measured."""
        if not self.repeated or any(region.seconds is None for region in self.repeated):
            return None
        return sum((region.copies - 1) * (region.seconds or 0.0) for region in self.repeated)


def from_data(rows: Sequence[Mapping[str, Any]]) -> tuple[ReuseRecord, ...]:
    """The records as they were, from plain data."""
    made = []
    for row in rows:
        regions = tuple(RegionRecord(**{**r, "modules": tuple(r["modules"])}) for r in row["regions"])
        made.append(ReuseRecord(**{**row, "regions": regions}))
    return tuple(made)


def render(records: Sequence[ReuseRecord]) -> list[str]:
    """Lines for a report: per graph the regions with their borders, or why there are none."""
    lines = []
    for number, record in enumerate(records):
        where = f" (graph {number})" if len(records) > 1 else ""
        if not record.repeated:
            if record.as_asked:
                continue
            lines.append(f"reuse{where}: the graph is left whole: {record.reason}")
            continue
        copies = sum(region.copies for region in record.repeated)
        saved = record.saved_seconds
        time = "seconds saved: not measured" if saved is None else f"about {saved:.1f} s of compiling saved"
        kinds = len(record.repeated)
        lines.append(f"reuse{where}: {kinds} region{'s' * (kinds != 1)} compiled once, called {copies} times; {time}")
        for region in record.regions:
            taken = "" if region.seconds is None else f", {region.seconds:.1f} s"
            taken = f", run as written ({region.as_written})" if region.as_written else taken
            lines.append(f"  x{region.copies} {region.nodes} operations{taken}: {_through(region.modules)}")
            lines.append(f"     from {region.begins}")
            lines.append(f"     to   {region.ends}")
    return lines


def _through(modules: Sequence[str]) -> str:
    named = [module or "(top level)" for module in modules]
    if len(named) <= 2:
        return " to ".join(named) or "(top level)"
    return f"{named[0]} to {named[-1]}"
