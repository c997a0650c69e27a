"""Every arm on every case, and what comes of it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bench.matchers.arms.arm import Arm, Outcome
from bench.matchers.perturbations import Case


@dataclass
class Row:
    case: Case
    outcomes: dict[str, Outcome]


def all_arms() -> list[Arm]:
    from bench.matchers.arms.fx import Fx
    from bench.matchers.arms.inductor import Inductor
    from bench.matchers.arms.onnx import Onnx
    from bench.matchers.arms.ours import Ours

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    peers: list[Arm] = [Inductor(every=False), Inductor(every=True), Fx("dynamo"), Fx("export"), Onnx()]
    return [Ours("dynamo"), Ours("post-grad"), *peers]


def run(cases: Sequence[Case], arms: Sequence[Arm]) -> list[Row]:
    """A row for each case; progress goes to stderr."""
    rows = []
    for case in cases:
        row = Row(case, {})
        for arm in arms:
            row.outcomes[arm.name] = arm.run(case)
        found = "  ".join(f"{name} {o.sites}" for name, o in row.outcomes.items())
        print(f"{case.name} ({case.sites} rightful): {found}", file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def totals(rows: Sequence[Row], arm: str) -> tuple[int, int, int]:
    """Rightful sites found, rightful sites, blocks whose function changed; rows of free choice count for the last."""
    fixed = [r for r in rows if not r.case.free]
    return (
        sum(min(r.outcomes[arm].sites, r.case.sites) for r in fixed),
        sum(r.case.sites for r in fixed),
        sum(r.outcomes[arm].wrong for r in rows),
    )
