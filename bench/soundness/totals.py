"""Counts of a run, which add up over workers, and how they are shown."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from bench.soundness.execute import Verdict


@dataclass
class Failing:
    """A failure as a person needs it: which program, what is wrong, and the script that shows it."""

    index: int
    what: str
    script: str = ""


@dataclass
class Totals:
    graphs: int = 0
    nodes: int = 0
    with_match: int = 0
    rewritten_graphs: int = 0
    rewritten: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    captures: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    edits: Counter[str] = field(default_factory=Counter)
    wrong: list[Failing] = field(default_factory=list)
    crashes: list[Failing] = field(default_factory=list)
    inductor: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def count(self, verdict: Verdict, capture: str) -> None:
        """Add one program."""
        self.graphs += 1
        self.captures[capture] += 1
        if verdict.captured is not None:
            self.nodes += len(verdict.captured.gm.graph.nodes)
        self.with_match += any(s.outcome in {"rewritten", "kept"} for s in verdict.sites)
        self.rewritten_graphs += verdict.rewritten > 0
        for site in verdict.sites:
            if site.outcome == "rewritten":
                self.rewritten[site.pattern] += 1
            else:
                self.refused[site.code] += 1
        if verdict.skipped:
            self.skipped[verdict.skipped.partition(":")[0]] += 1

    def add(self, other: Totals) -> None:
        """Take in another worker's counts."""
        for name, value in vars(other).items():
            if name == "seconds":
                self.seconds = max(self.seconds, value)
            elif isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        out = dict(vars(self))
        out.update({k: dict(v.most_common()) for k, v in out.items() if isinstance(v, Counter)})
        out.update({k: [vars(f) for f in getattr(self, k)] for k in ("wrong", "crashes")})
        return out

    def show(self, seed: int) -> None:
        """The table."""
        from rich.console import Console
        from rich.table import Table

        console = Console()
        table = Table(title=f"Soundness fuzz, seed {seed}", show_header=False)
        per_second = self.graphs / self.seconds if self.seconds else 0.0
        rows: list[tuple[str, Any]] = [
            ("graphs", f"{self.graphs} of {self.nodes} nodes in {self.seconds:.0f} s ({per_second:.0f} a second)"),
            ("captured through", _listed(self.captures)),
            ("with a match", self.with_match),
            ("with a rewrite", self.rewritten_graphs),
            ("sites rewritten", _listed(self.rewritten)),
            ("sites refused", _listed(self.refused)),
            ("not asked (PyTorch refuses, capture fails)", _listed(self.skipped) or "0"),
        ]
        if self.inductor:
            rows.append(("through Inductor", _listed(self.inductor)))
        rows += [("wrong results", len(self.wrong)), ("crashes", len(self.crashes))]
        for name, value in rows:
            table.add_row(name, str(value))
        console.print(table)
        for failing in [*self.wrong, *self.crashes]:
            console.print(f"graph {failing.index}: {failing.what}\n  {failing.script}", markup=False)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())
