"""Whether a pattern is found in a graph, and whether the rewritten graph still computes what the graph computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from fxfuse.authoring import Pattern
from fxfuse.checking.running import same_bits, tensors_in
from fxfuse.checking.sketch import evaluate
from fxfuse.engine import Fused, fuse
from fxfuse.kernels import REFERENCE
from fxfuse.match import Found, Match, find_sites, select
from fxfuse.options import Options, parse
from fxfuse.view import View

LAST_PLACES = 1e-6
"""What two fp32 results may differ by, relative to the largest value, and still be one function."""


@dataclass(frozen=True)
class Look:
    """What the matcher says of one graph: the matches, and why the nearest other place is none."""

    matches: tuple[Match, ...]
    nearest: Found | None

    @property
    def reason(self) -> str:
        """Why nothing matched, as a sentence."""
        if self.nearest is None or self.nearest.reason is None:
            return "no place in the graph looks like the pattern"
        return f"{self.nearest.reason.code}: {self.nearest.reason.sentence()}"

    @property
    def code(self) -> str:
        return self.nearest.reason.code if self.nearest is not None and self.nearest.reason is not None else "OP"


def look(gm: fx.GraphModule, live: Sequence[Any], pattern: Pattern) -> Look:
    """Search one graph for a pattern."""
    found = select(find_sites(View(gm.graph, live), pattern))
    matches = tuple(f.match for f in found if f.match is not None and f.reason is None)
    others = [f for f in found if f.reason is not None]
    return Look(matches, max(others, key=lambda f: (f.match is not None, f.matched), default=None))


def options_for(pattern: Pattern, kernel: str) -> Options:
    """Options under which every site of the pattern gets this kernel, and errors are raised."""
    base = parse({"patterns": [pattern], "on_miss": "silent", "on_error": "raise", "weights": "inline"})
    return replace(base, kernels=((pattern.name, (kernel,)),))


def rewrite(gm: fx.GraphModule, live: Sequence[Any], pattern: Pattern, kernel: str = REFERENCE) -> Fused:
    """The graph with every site of the pattern rewritten to a kernel; what goes wrong is raised."""
    return fuse(gm, live, options_for(pattern, kernel))


def same_function(a: fx.GraphModule, b: fx.GraphModule, sets: Sequence[Sequence[Any]]) -> str | None:
    """How the results, or the arguments as they are left, differ on these sets of arguments; None where they do not."""
    for arguments in sets:
        (result_a, left_a), (result_b, left_b) = evaluate(a, arguments), evaluate(b, arguments)
        difference = differ(result_a, result_b)
        if difference is not None:
            return difference
        if not same_bits(left_a, left_b):
            return "the arguments are left in different states"
    return None


def differ(a: Any, b: Any) -> str | None:
    """How two results differ by more than the last place of fp32; None where they do not."""
    if same_bits(a, b):
        return None
    ours, theirs = tensors_in(a), tensors_in(b)
    if len(ours) != len(theirs):
        return f"{len(ours)} results instead of {len(theirs)}"
    worst = 0.0
    for x, y in zip(ours, theirs, strict=True):
        if x.dtype != y.dtype or x.shape != y.shape:
            return f"{x.dtype} {tuple(x.shape)} instead of {y.dtype} {tuple(y.shape)}"
        if same_bits(x, y):
            continue
        if x.dtype not in (torch.float32, torch.float64) or not torch.equal(x.isfinite(), y.isfinite()):
            return f"results differ by up to {(x.double() - y.double()).abs().max().item():.3g}"
        gap = (x - y).nan_to_num().abs().max() / y.nan_to_num().abs().max().clamp_min(1e-30)
        worst = max(worst, gap.item())
    return f"results differ by up to {worst:.3g} of the largest value" if worst > LAST_PLACES else None
