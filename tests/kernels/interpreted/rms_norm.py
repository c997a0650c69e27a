"""The numbers of `rms_norm` and `add_rms_norm`, in Triton's interpreter. Run by tests/kernels/test_interpreted.py."""

from __future__ import annotations

import pytest
import torch

from fxfuse.kernels.triton import rms_norm as rows
from tests.kernels.interpreted.contract import (
    BF16,
    DTYPES,
    EPS,
    FP16,
    FP32,
    Random,
    check,
    named,
    normed,
    poisoned,
    skewed,
    wide,
)

__all__ = ["poisoned"]

NORMS = ("none", "early", "late", "offset")


def operands(dtype: torch.dtype, count: int, hidden: int, norm: str, seed: int = 0, weight_dtype=None) -> tuple:
    random = Random(seed)
    x = random.rows(count, hidden).to(dtype)
    residual = random.rows(count, hidden, outliers=False).to(dtype)
    weight = random.normal(hidden, scale=0.3) + (0.0 if norm == "offset" else 1.0)
    return x, residual, None if norm == "none" else weight.to(weight_dtype or dtype)


def check_norm(x: torch.Tensor, weight: torch.Tensor | None, norm: str) -> torch.Tensor:
    result = rows.rms_norm(x, weight, EPS, norm)
    check(result, normed(x, weight, norm), normed(x.double(), wide(weight), norm), x.dtype)
    return result


def check_add(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, norm: str) -> torch.Tensor:
    total, result = rows.add_rms_norm(x, residual, weight, EPS, norm)
    assert torch.equal(total, x + residual)
    assert total.is_contiguous()
    exact = normed(x.double() + residual.double(), weight.double(), norm)
    check(result, normed(x + residual, weight, norm), exact, total.dtype)
    return result


# A short row shares its program with others; 61, 257, 1009 are primes; the longest is read twice.
SIZES = ((1, 257), (7, 61), (17, 64), (3, 1009), (2, 10_007), (33, 1))
CASES = [(dtype, norm) for dtype in DTYPES for norm in NORMS]


@pytest.mark.parametrize(("dtype", "norm", "seeds"), named(CASES))
def test_error_contract(dtype, norm, seeds):
    for seed, (count, hidden) in enumerate(SIZES):
        x, residual, weight = operands(dtype, count, hidden, norm, seed)
        check_norm(x, weight, norm)
        if weight is not None:
            check_add(x, residual, weight, norm)
    for seed in seeds:
        x, residual, weight = operands(dtype, 5, 96, norm, seed)
        check_norm(x, weight, norm)


@pytest.mark.parametrize("norm", NORMS[1:])
@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_rounds_where_the_reference_rounds(dtype, norm):
    """Sums of squares may differ in the last place, and hardly any result with them; another order changes many."""
    x, _, weight = operands(dtype, 64, 96, norm)
    result = rows.rms_norm(x, weight, EPS, norm)
    other = {"early": "late", "late": "early", "offset": "early"}[norm]
    assert (result == normed(x, weight, norm)).double().mean() > 0.99
    assert (result == normed(x, weight + (norm == "offset"), other)).double().mean() < 0.95


@pytest.mark.parametrize("norm", NORMS[1:])
@pytest.mark.parametrize(("dtype", "weight_dtype"), [(BF16, FP32), (FP32, BF16), (FP16, BF16)])
def test_weight_of_another_dtype(dtype, weight_dtype, norm):
    x, residual, weight = operands(dtype, 3, 61, norm, weight_dtype=weight_dtype)
    assert rows.rms_norm(x, weight, EPS, norm).dtype == normed(x, weight, norm).dtype
    check_norm(x, weight, norm)
    check_add(x, residual, weight, norm)


def test_a_sum_of_two_dtypes():
    x, residual, weight = operands(BF16, 5, 61, "early", weight_dtype=FP32)
    for a, b in ((x, residual.float()), (x.float(), residual), (x, residual.half())):
        check_add(a, b, weight, "early")


@pytest.mark.parametrize("norm", ["none", "early"])
def test_strides_and_alignment(norm):
    x, residual, weight = operands(BF16, 6, 48, norm)
    every_third = None if weight is None else weight.repeat_interleave(3)[::3]
    want = check_norm(x, weight, norm)
    for view in (x.t().contiguous().t(), skewed(x), x.view(2, 3, 48).transpose(0, 1), x[:1].expand(6, 48)):
        result = check_norm(view, every_third, norm)
        if view.shape == x.shape and view.stride(0):
            assert torch.equal(result, want)
    if weight is not None:
        check_add(skewed(x), residual.t().contiguous().t(), every_third, norm)
        check_add(x.view(2, 3, 48).transpose(0, 1), residual.view(3, 2, 48), weight, norm)


@pytest.mark.parametrize("shape", [(0, 33), (2, 0, 33)])
def test_no_rows(shape):
    empty, weight = torch.empty(shape, dtype=BF16), torch.ones(33, dtype=FP32)
    assert rows.rms_norm(empty, weight, EPS, "early").shape == shape
    assert rows.rms_norm(empty, weight, EPS, "early").dtype == FP32
    total, result = rows.add_rms_norm(empty, empty, weight, EPS, "late")
    assert (total.shape, result.shape, total.dtype, result.dtype) == (shape, shape, BF16, BF16)


def test_one_row_without_leading_sizes():
    x, _, weight = operands(FP32, 1, 61, "late")
    assert torch.equal(rows.rms_norm(x[0], weight, EPS, "late"), rows.rms_norm(x, weight, EPS, "late")[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_repeated_runs_are_bit_identical(dtype):
    x, residual, weight = operands(dtype, 3, 10_007, "early")
    assert torch.equal(rows.rms_norm(x, weight, EPS, "early"), rows.rms_norm(x, weight, EPS, "early"))
    one, two = (rows.add_rms_norm(x, residual, weight, EPS, "early") for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_nan_and_infinity_stay_in_their_rows():
    x, residual, weight = operands(BF16, 3, 61, "early")
    clean = rows.add_rms_norm(x, residual, weight, EPS, "early")[1]
    x[1, 7] = float("nan")
    result = rows.add_rms_norm(x, residual, weight, EPS, "early")[1]
    assert result[1].isnan().all()
    assert torch.equal(result[::2], clean[::2])
    x[1, 7] = float("inf")
    torch.testing.assert_close(
        rows.rms_norm(x, weight, EPS, "early")[1], normed(x, weight, "early")[1], equal_nan=True, rtol=0, atol=0
    )


def test_ops_inside_a_compiled_function():
    x, residual, weight = operands(BF16, 3, 61, "early")
    op, add_op = rows.op(), rows.add_op()
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(op, (x, weight, EPS, "early"), test_utils=tests)
    torch.library.opcheck(op, (x, None, EPS, "none"), test_utils=tests)
    torch.library.opcheck(add_op, (x, residual, weight, EPS, "late"), test_utils=tests)

    def model(x):
        total, result = add_op(x * 2, residual, weight, EPS, "early")
        return total + op(result, weight, EPS, "late")

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "none"}, "norm is 'none', expected one of early, late, offset"),
        ({"weight": None}, "norm is 'early', expected one of none"),
        ({"x": torch.zeros(2, 61, dtype=torch.float64)}, "x is torch.float64, expected one of torch.bfloat16, .*"),
        ({"x": torch.zeros((), dtype=BF16)}, r"x has shape \(\), expected \[..., hidden\] with hidden positive"),
        ({"x": torch.zeros(2, 0, dtype=BF16)}, r"x has shape \(2, 0\), expected \[..., hidden\] with hidden positive"),
        ({"weight": torch.zeros(60)}, r"weight has shape \(60,\), expected \(61,\)"),
        ({"weight": torch.zeros(61, dtype=torch.int32)}, "weight is torch.int32, expected one of .*"),
        ({"weight": torch.zeros(61, device="meta")}, "weight is on meta, expected cpu as x"),
    ],
)
def test_errors_name_what_was_given_and_what_is_valid(change, message):
    x, _, weight = operands(BF16, 2, 61, "early")
    with pytest.raises(ValueError, match=message):
        rows.rms_norm(**{"x": x, "weight": weight, "eps": EPS, "norm": "early", **change})


def test_a_residual_of_another_shape_is_an_error():
    x, residual, weight = operands(BF16, 2, 61, "early")
    with pytest.raises(ValueError, match=r"residual has shape \(1, 61\), expected \(2, 61\)"):
        rows.add_rms_norm(x, residual[:1], weight, EPS, "early")
