"""A pattern of two results, small models that contain it, and what the tests of the editor ask about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

import fxfuse
from fxfuse import Input
from fxfuse.report import Report
from tests.support import capture


@fxfuse.pattern("bent_and_scaled")
def bent_and_scaled(x=Input(), y=Input()):
    """A value, and the same scaled by another that may come much later."""
    bent = torch.tanh(x)
    return bent, bent * torch.sigmoid(y)


def kernel(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return fxfuse.kernel(bent_and_scaled, name=name)


@kernel("computed")
def computed(x: Any, y: Any) -> Any:
    """The same by other operations, so that a test can tell that they were put in place."""
    bent = 2.0 * torch.sigmoid(2.0 * x) - 1.0
    return bent, bent / (1.0 + torch.exp(-y))


def inputs(*shape: int, count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(17)
    return [torch.randn(*(shape or (4, 6)), generator=generator) for _ in range(count)]


def graph_of(function: Callable[..., Any], *args: Any) -> fx.GraphModule:
    gm, _ = capture(function, *args)
    return gm


def rewrite(gm: fx.GraphModule, kernel: str = "computed", **more: Any) -> Report:
    """Rewrite the graph with this kernel; failures of a single site are rows, not errors."""
    options = {"patterns": [bent_and_scaled], "kernels": {"bent_and_scaled": kernel}, "on_miss": "silent", **more}
    return fxfuse.rewrite(gm, options=options)


def outcomes(report: Report) -> list[tuple[str, str]]:
    return [(site.outcome, site.code) for site in report.sites]


def check(function: Callable[..., Any], *args: torch.Tensor, kernel: str = "computed", **more: Any) -> Report:
    """Rewrite what Dynamo captures of the call; results and written inputs must be eager's, also to float64."""
    theirs = [a.clone() for a in args]
    want = function(*theirs)
    given = [a.clone() for a in args]
    gm, live = capture(function, *given)
    report = rewrite(gm, kernel, **more)
    mine = [a.clone() for a in args]
    order = [next(i for i, a in enumerate(given) if a is x) for x in live]
    got = gm(*[mine[i] for i in order])
    flat = want if isinstance(want, tuple) else (want,)
    torch.testing.assert_close(tuple(got), tuple(flat))
    torch.testing.assert_close(mine, theirs)
    wide = function(*[a.double() for a in args])
    exact = wide if isinstance(wide, tuple) else (wide,)
    torch.testing.assert_close([g.double() for g in got], list(exact), rtol=1e-5, atol=1e-6)
    return report
