"""The numeric contract: at most twice eager's error plus a floor, in maximum and in RMS, against float64."""

from __future__ import annotations

import math

import pytest
import torch

from fxfuse.numerics.contract import FLOOR, errors, within, worst


def exact(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*(shape or (40, 50)), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_eager_is_within_itself_and_twice_its_error_is_the_limit(dtype: torch.dtype) -> None:
    truth = exact()
    eager = truth.to(dtype)
    assert within(eager, eager, truth)
    noise = (eager.double() - truth) * 3
    scale = FLOOR[dtype] * 3 * truth.abs().max()
    assert not within((truth + noise + scale).to(torch.float64), eager, truth)
    assert within(truth, eager, truth)  # more exact than eager


def test_the_figures() -> None:
    truth = torch.tensor([2.0, -4.0], dtype=torch.float64)
    found = errors(torch.tensor([2.0, -3.0]), torch.tensor([2.0, -4.0]), truth)
    assert found.fused.max == pytest.approx(1 / 4)
    assert found.fused.rms == pytest.approx(math.sqrt(0.5) / math.sqrt(10))
    assert (found.eager.max, found.eager.rms) == (0, 0)
    assert found.allowed.max == found.allowed.rms == 1e-6
    assert found.ratio > 1e5
    assert not found.within
    assert str(found).startswith("fused max 2.50e-01, rms 2.24e-01; eager max 0.00e+00")


def test_one_wrong_value_is_seen_in_the_maximum_and_many_small_ones_in_rms() -> None:
    truth = exact(100, 100)
    eager = truth.bfloat16()
    one = eager.clone()
    one[3, 4] += 0.2
    found = errors(one, eager, truth)
    assert found.fused.max > found.allowed.max
    assert found.fused.rms < found.allowed.rms
    assert not found.within
    many = errors((truth * 1.006).to(torch.float64), eager, truth)
    assert many.fused.rms > many.allowed.rms


def test_overflow_of_eager_does_not_count_and_that_of_the_fused_does() -> None:
    truth = torch.tensor([1.0, 70000.0], dtype=torch.float64)
    eager = truth.half()
    assert eager.isinf().any()
    assert within(eager, eager, truth)
    assert within(torch.tensor([1.0, 5.0]).half(), eager, truth)
    assert not within(torch.tensor([float("inf"), 5.0]).half(), eager, truth)
    assert not within(torch.tensor([float("nan"), 5.0]).half(), eager, truth)


def test_nan_for_nan_and_inf_for_inf_are_right() -> None:
    truth = torch.tensor([float("nan"), float("inf"), 1.0], dtype=torch.float64)
    eager = truth.float()
    assert within(eager, eager, truth)
    assert not within(torch.tensor([1.0, float("inf"), 1.0]), eager, truth)
    assert not within(torch.tensor([float("nan"), -float("inf"), 1.0]), eager, truth)


def test_numbers_that_do_not_round_are_equal_or_wrong() -> None:
    a, b = torch.tensor([1, 2]), torch.tensor([1, 3])
    assert within(a, a, a)
    assert not within(b, a, a)
    assert errors(b, a, a).ratio == math.inf
    assert within(a.bool(), a.bool(), a.bool())


def test_empty_and_zero_results() -> None:
    empty = torch.empty(0, 3)
    assert within(empty, empty, empty)
    zero = torch.zeros(3)
    assert within(zero, zero, zero)
    assert not within(zero + 1e-3, zero, zero)


def test_worst_is_of_the_seeds_together() -> None:
    truths = [exact(seed=s) for s in range(5)]
    found = [errors(t.bfloat16(), t.bfloat16(), t) for t in truths]
    whole = worst(found)
    assert whole.fused.max == max(e.fused.max for e in found)
    assert whole.within
    with pytest.raises(ValueError, match="at least one result"):
        worst([])


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"one shape; given \(2,\), \(3,\), \(3,\)"):
        errors(torch.zeros(2), torch.zeros(3), torch.zeros(3))
