"""What every matcher of the comparison does: find a case's sites, replace them, and say what it says about the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.matchers.perturbations import Case

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
"""Root mean square error, relative: above it two functions differ by more than the rounding of one decomposition.

In bf16 a cast before or after the scale is about 2e-3; what Inductor's decomposition of ``silu`` moves is below 5e-4.
"""


@dataclass
class Outcome:
    """What a matcher did with one case.

    Attributes:
        sites: how many it found.
        errors: for each block the relative error of the rewritten graph against the graph as it was.
        wrong: blocks whose function changed.
        said: what it said about blocks that it did not find, unasked; "" where nothing.
        asked: the same with its debugging help switched on.
        patterns: how many patterns it was given.
        failed: the error where the replacement or the run of it failed.
    """

    sites: int
    errors: list[float] = field(default_factory=list)
    wrong: int = 0
    said: str = ""
    asked: str = ""
    patterns: int = 1
    failed: str = ""


class Arm(Protocol):
    """One matcher, at one level."""

    name: str
    given: str
    """In words: which graph, and which pattern."""

    def run(self, case: Case) -> Outcome: ...


def judge(outcome: Outcome, case: Case, before: Sequence[Any], rewritten: Callable[[], Sequence[Any]]) -> Outcome:
    """Run the rewritten graph and count the blocks whose results differ; ``before`` are the results as they were."""
    try:
        after = rewritten()
    except Exception as error:  # a peer's replacement that cannot run is a finding, and no reason to stop
        outcome.failed = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        return outcome
    outcome.errors = [error_of(b, a) for b, a in zip(before, after, strict=True)]
    outcome.wrong = sum(not e <= TOLERANCE[case.dtype] for e in outcome.errors)
    return outcome


def by_block(case: Case, flat: Sequence[Tensor]) -> list[list[Tensor]]:
    """Flat results as one list for each block: as many as the block's body returns."""
    sizes = [len(block(x)) for block, x in zip(case.model().blocks, case.inputs(), strict=True)]
    at = iter(flat)
    return [[next(at) for _ in range(size)] for size in sizes]


def error_of(before: Any, after: Any) -> float:
    """The largest relative error over a block's results."""
    pairs = zip(before, after, strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for b, a in pairs)
