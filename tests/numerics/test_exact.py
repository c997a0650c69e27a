"""The exact function: float64 throughout, or a reason why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import capture
from torch import Tensor

from fxfuse.numerics.exact import Exact, NotMeasured

X = torch.linspace(-3.0, 3.0, 24).reshape(3, 8).to(torch.bfloat16)


def exact(function: Callable[..., Any], *args: Any) -> Any:
    gm, examples = capture(function, *args)
    return Exact(gm, gm.graph).run(*examples)[0]


@pytest.mark.parametrize(
    ("function", "wide"),
    [
        (lambda x: x.float() * 0.1, lambda x: x * 0.1),
        (lambda x: (x * x).to(torch.float16).to(torch.float32), lambda x: x * x),
        (lambda x: torch.softmax(x, -1, dtype=torch.float32), lambda x: torch.softmax(x, -1)),
        (lambda x: (x / 3).half().double().bfloat16(), lambda x: x / 3),
        (lambda x: (x / 3).type_as(x), lambda x: x / 3),
        (lambda x: (x > 0).float() + (x > 1).to(x.dtype), lambda x: (x > 0).double() + (x > 1).double()),
        (lambda x: x.to(dtype=torch.float32, copy=True) / 3, lambda x: x / 3),
        (lambda x: F.rms_norm(x, (8,), eps=1e-5), lambda x: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5)),
        (
            lambda x: F.rms_norm(x, (8,)),
            lambda x: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + torch.finfo(torch.float32).eps),
        ),
    ],
)  # fmt: skip
def test_nothing_is_rounded(function: Callable[[Tensor], Tensor], wide: Callable[[Tensor], Tensor]) -> None:
    found = exact(function, X)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wide(X.double()), rtol=1e-15, atol=0.0)
    rounded = function(X).double()
    assert (found - rounded).abs().max() > 0 or torch.equal(found, found.round())


def test_what_is_no_floating_point_number_stays() -> None:
    assert exact(lambda x: x.argmax(-1), X).dtype == torch.int64
    assert exact(lambda x: x.to(torch.int32), X).dtype == torch.int32
    assert exact(lambda x: x > 0, X).dtype == torch.bool


@torch.library.custom_op("fxfuse_tests::only_fp32", mutates_args=())
def only_fp32(x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        raise TypeError(f"takes float32, not {x.dtype}")
    return x * 2


@only_fp32.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fxfuse_tests::gives_fp32", mutates_args=())
def gives_fp32(x: Tensor) -> Tensor:
    return x.float() * 2


@gives_fp32.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.float32)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: only_fp32(x), "does not run in float64: takes float32, not torch.float64"),
        (lambda x: gives_fp32(x), "gives torch.float32 for float64 operands"),
        (lambda x: x.view(torch.int32) + 1, "reads a tensor's bits as another dtype"),
        (lambda x: x + torch.zeros(8, dtype=torch.float32).to("cpu").type("torch.FloatTensor"), "gives torch.float32"),
    ],
)
def test_what_is_not_exact_is_said(function: Callable[[Tensor], Tensor], why: str) -> None:
    with pytest.raises(NotMeasured, match=why):
        exact(function, X.float())
