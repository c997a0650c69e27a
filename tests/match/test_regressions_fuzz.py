"""What the soundness fuzz found in 20,000 graphs, each once a wrong result or a crash."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fxfuse
from fxfuse import Dim, Input, Param, PatternError, Scalar, keep, pattern
from tests.match.test_regressions_matching import Body, count, rand, rewritten

D, N = Dim("D"), Dim("N")


@pattern("scaled_softmax")
def scaled_softmax(x: Any = Input(..., D), scale: Any = Scalar(float)) -> Any:
    return F.softmax(x * scale, dim=-1)


@pattern("scaled_tanh")
def divided_tanh(x: Any = Input(..., D), over: Any = Scalar(float)) -> Any:
    return torch.tanh(over / x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_eager_rounds_a_number_that_comes_first_in_a_call(dtype: torch.dtype) -> None:
    x = rand(64, 8, dtype=dtype)
    exact, low = torch.mul(0.3, x), 0.3 * x
    assert torch.equal(exact, low) == (dtype is torch.float32), "the premise"
    for body in (lambda m, x: F.softmax(0.3 * x, -1), lambda m, x: F.softmax(torch.mul(x, 0.3), -1)):
        assert count(scaled_softmax, body, x) == 1
    found = dtype is torch.float32
    for spelled in (torch.mul, torch.multiply):
        assert count(scaled_softmax, lambda m, x, f=spelled: F.softmax(f(0.3, x), -1), x) == found
        assert count(scaled_softmax, lambda m, x, f=spelled: F.softmax(f(0.25, x), -1), x) == 1  # exact in every dtype
    if dtype is not torch.float32:
        assert count(divided_tanh, lambda m, x: torch.tanh(torch.div(0.3, x)), x) == 0
    assert count(divided_tanh, lambda m, x: torch.tanh(0.3 / x), x) == 1


def test_a_pattern_that_would_round_its_number_is_an_error() -> None:
    def scalar_first(x: Any = Input(..., D), scale: Any = Scalar(float)) -> Any:
        return F.softmax(torch.mul(scale, x), dim=-1)

    def literal_first(x: Any = Input(..., D)) -> Any:
        return F.softmax(torch.div(0.3, x), dim=-1)

    def another_name(x: Any = Input(..., D), over: Any = Scalar(float)) -> Any:
        return torch.tanh(torch.true_divide(over, x))

    for function in (scalar_first, literal_first, another_name):
        with pytest.raises(PatternError, match=r"rounds the number to the dtype of x .* Write the operator"):
            pattern("p")(function)


@pattern("rounded_exp")
def rounded_exp(x: Any = Input(..., D)) -> Any:
    return torch.exp(x.float()).to(x.dtype)


def test_two_casts_that_are_both_returned_stay_two_tensors() -> None:
    x = rand(4, 8, dtype=torch.bfloat16)

    def both(m: Any, x: Any) -> Any:
        y = torch.exp(x.float())
        return y.to(torch.bfloat16), y.bfloat16()

    def a_view_of_one(m: Any, x: Any) -> Any:
        y = torch.exp(x.float())
        return y.to(torch.bfloat16).view(-1), y.bfloat16()

    for body in (both, a_view_of_one):
        torch._dynamo.reset()
        options = {"patterns": [rounded_exp], "inner": "eager", "on_miss": "silent"}
        with torch.no_grad():
            first, second = torch.compile(Body(body, ()), backend="fxfuse", options=options)(x)
        assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()
    assert count(rounded_exp, lambda m, x: (lambda y: y.bfloat16().sin() + y.to(x.dtype))(torch.exp(x.float())), x) == 1


@pattern("exp_linear")
def exp_linear(x: Any = Input(..., D), w: Any = Param(N, D)) -> Any:
    return F.linear(torch.exp(x), w)


@pattern("kept_gate")
def kept_gate(x: Any = Input(..., D), w: Any = Param(N, D)) -> Any:
    gate = keep(F.linear(x, w))
    return gate * torch.sigmoid(gate + 1.0)


def test_a_site_that_reads_what_another_takes_away_loses() -> None:
    """Both hold the linear, and neither takes it from the other; but one takes what the linear reads."""
    x = rand(4, 4)

    def body(m: Any, x: Any) -> Any:
        gate = F.linear(torch.exp(x), m.w)
        return gate * torch.sigmoid(gate + 1.0)

    torch._dynamo.reset()
    model = Body(body, ["w"])
    backend = fxfuse.Backend(patterns=[exp_linear, kept_gate], inner="eager", on_error="raise", on_miss="silent")
    with torch.no_grad():
        expected, found = model(x), torch.compile(model, backend=backend)(x)
    assert torch.equal(found, expected)
    codes = {site.pattern: site.code for site in fxfuse.reports()[-1].sites}
    assert set(codes.values()) == {"", "OVERLAP"}, codes
    assert rewritten(kept_gate, body, x, weights="w").rewritten["kept_gate"] == 1
