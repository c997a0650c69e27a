"""`fxfuse bench kernels`: a right kernel passes, and one that is off, fails, or differs from run to run does not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import fxfuse
from fxfuse.benchmarks import checks
from fxfuse.benchmarks.errors import BenchError
from fxfuse.kernels import registry

NAME = "rms_norm"
SIZES = ({"hidden": 16, "intermediate": 32, "out": 16},)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SIZES", SIZES)


@pytest.fixture
def register() -> Iterator[Any]:
    registry.kernels_for(NAME)
    before = list(registry._REGISTRY[NAME])
    yield fxfuse.kernel(NAME, name="tried")
    registry._REGISTRY[NAME] = before


def check(rows: tuple[int, ...] = (0, 1, 3)) -> int:
    return checks.check(NAME, "fp32", torch.device("cpu"), lambda _: None, rows=rows, inner="eager")


def normed(x: Any, weight: Any, eps: Any) -> Any:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def test_what_the_library_has_is_checked_at_each_row_count() -> None:
    assert "fxfuse::rms_norm_gated_mlp" in checks.patterns()
    assert check() == 3


def test_a_right_kernel_passes(register: Any) -> None:
    @register
    def tried(x: Any, weight: Any, *, eps: Any, norm: str) -> Any:
        return normed(x, weight, eps)

    assert check() == 6


COUNT = itertools.count()


def off(x: Any, weight: Any, eps: Any) -> Any:
    return normed(x, weight, eps) * 1.001


def fails(x: Any, weight: Any, eps: Any) -> Any:
    raise ZeroDivisionError("inside")


def loses_rows(x: Any, weight: Any, eps: Any) -> Any:
    return normed(x, weight, eps)[..., :-1, :]


@pytest.mark.parametrize(
    ("wrong", "rows", "said"),
    [
        (off, (3,), "kernel tried is off from float64"),
        (fails, (3,), "ZeroDivisionError: inside"),
        (loses_rows, (3,), "the site gives torch.float32 (3, 16)"),
        (fails, (0,), "ZeroDivisionError: inside"),
    ],
)
def test_a_wrong_kernel_is_named_with_its_shape(register: Any, wrong: Any, rows: Any, said: str) -> None:
    @register
    def tried(x: Any, weight: Any, *, eps: Any, norm: str) -> Any:
        return wrong(x, weight, eps)

    with pytest.raises(BenchError) as refused:
        check(rows)
    assert str(refused.value).startswith("1 of 2 kernel results are wrong: ")
    assert said in str(refused.value)
    assert f"(fp32, {rows[0]} rows, hidden=16" in str(refused.value)


@torch.library.custom_op("fxfuse_bench_tests::restless", mutates_args=())
def restless(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + 1e-7 * (next(COUNT) % 2))


@restless.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_a_kernel_that_differs_from_run_to_run_is_named(register: Any) -> None:
    @register
    def tried(x: Any, weight: Any, *, eps: Any, norm: str) -> Any:
        return restless(normed(x, weight, eps))

    with pytest.raises(BenchError, match="kernel tried: two runs differ"):
        check((3,))
