"""Captures of several: the kernel gets a tuple, and a transform of it gets all of its elements, one after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxfuse
from fxfuse import Dim, Input, Param, stack
from fxfuse.report import Site

D, N = Dim("d"), Dim("n")


@fxfuse.pattern("sibling_products")
def sibling_products(x=Input(..., D), weights=Param(N, D, many=True)):
    return fxfuse.many(lambda w: F.linear(x, w), weights)


def kernel(name: str, **more: Any) -> Any:
    return fxfuse.kernel(sibling_products, name=name, **more)


@kernel("merged", derive={"rows": stack("weights")})
def merged(x, rows, weights):
    parts = F.linear(x, rows).split([w.shape[0] for w in weights], -1)
    return tuple(part.contiguous() for part in parts)


@kernel("merged_as_views", derive={"rows": stack("weights")})
def merged_as_views(x, rows, weights):
    return tuple(F.linear(x, rows).split([w.shape[0] for w in weights], -1))


@kernel("one_short")
def one_short(x, weights):
    return tuple(F.linear(x, w) for w in weights[:-1])


class Heads(nn.Module):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.heads = nn.ModuleList(nn.Linear(6, size, bias=False) for size in sizes)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [head(x) * (i + 1) for i, head in enumerate(self.heads)]


def compiled(kernel: str, weights: str, *sizes: int) -> Site:
    """Compile over eager; the results are eager's and float64's. Hands back the only site."""
    model, x = Heads(*sizes), torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    want = model(x)
    torch._dynamo.reset()
    backend = fxfuse.Backend(
        patterns=[sibling_products], kernels={"sibling_products": kernel}, weights=weights, extra_memory=1.0,
        inner="eager",
    )  # fmt: skip
    with torch.no_grad():
        got = torch.compile(model, backend=backend, fullgraph=True)(x)
    torch.testing.assert_close(got, want)
    exact = Heads(*sizes).double()(x.double())
    torch.testing.assert_close([g.double() for g in got], exact, rtol=1e-5, atol=1e-6)
    (site,) = fxfuse.reports()[-1].sites
    return site


@pytest.mark.parametrize("weights", ["share", "copy", "inline"])
@pytest.mark.parametrize("sizes", [(4, 4), (4, 2, 2), (2, 6, 4, 8)])
def test_every_placement_of_a_stack_of_siblings(weights, sizes):
    site = compiled("merged", weights, *sizes)
    assert (site.outcome, site.weights) == ("rewritten", weights)
    size = sum(sizes) * 6 * 4
    assert site.shared_bytes == (size if weights == "share" else 0)
    assert site.extra_bytes == (size if weights == "copy" else 0)


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        ("merged_as_views", "result 1 of 3 of 'merged_as_views' gives strides (8, 1); the site gives (4, 1)"),
        ("one_short", "kernel 'one_short' returned 2 tensors; the site has 3 results"),
    ],
)
def test_results_that_do_not_fit(kernel, says):
    site = compiled(kernel, "inline", 4, 2, 2)
    assert (site.outcome, site.code) == ("kept", "REWRITE_ERROR")
    assert says in site.reason
