"""What the tests of the pattern library compile, and how they look at what came of it. The oracle is eager."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import fxfuse
from fxfuse.report import Site

LOW = torch.bfloat16
EVERY_DTYPE = (torch.float32, LOW)


class Spelled(nn.Module):
    """Parameters by name, and a forward that is whatever function of them and the inputs is given."""

    def __init__(self, body: Callable[..., Any], dtype: torch.dtype = torch.float32, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        for name, shape in shapes.items():
            made = torch.randn(shape, generator=generator) * 0.3 + (1.0 if len(shape) == 1 else 0.0)
            self.register_parameter(name, nn.Parameter(made.to(dtype), requires_grad=False))
        self.body = body

    def forward(self, *inputs: Any) -> Any:
        return self.body(self, *inputs)


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sites(model: Any, *inputs: Any, pattern: str, **options: Any) -> tuple[Site, ...]:
    """The sites that a compile would have."""
    given = {"patterns": [pattern], "on_miss": "silent", "on_error": "raise", **options}
    with torch.no_grad():
        return fxfuse.explain(model, inputs, options=given).sites


def variants(model: Any, *inputs: Any, pattern: str, **options: Any) -> list[Mapping[str, str]]:
    """The variants of what would be rewritten, in graph order."""
    found = sites(model, *inputs, pattern=pattern, **options)
    return [dict(site.variant) for site in found if site.outcome == "rewritten"]


def refusal(model: Any, *inputs: Any, pattern: str) -> str | None:
    """The code of the nearest miss; None where nothing looks like the pattern. What is found is a failure."""
    found = sites(model, *inputs, pattern=pattern)
    assert all(site.outcome == "missed" for site in found), [str(site) for site in found]
    return max(found, key=lambda s: s.matched_nodes).code if found else None


def run(model: Any, *inputs: Any, pattern: str, expect: int, exact: bool = True, **options: Any) -> None:
    """Compile over eager, and compare with eager: to the bit, or by the numeric contract against float64."""
    torch._dynamo.reset()
    given = {"patterns": [pattern], "expect_rewritten": {pattern: expect}, "on_error": "raise", **options}
    backend = fxfuse.Backend(inner="eager", **given)
    with torch.no_grad():
        wanted = copy.deepcopy(model)(*inputs)
        got = torch.compile(model, backend=backend, fullgraph=True)(*inputs)
    if exact:
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
    else:
        torch.testing.assert_close(got, wanted, rtol=2e-2 if _is_low(inputs) else 1e-5, atol=1e-2)
        report = fxfuse.verify(model, inputs, options={k: v for k, v in given.items() if k != "expect_rewritten"})
        assert report.ok, str(report)


def _is_low(inputs: tuple[Any, ...]) -> bool:
    return any(isinstance(i, Tensor) and i.dtype is LOW for i in inputs)
