"""The numbers of the projections behind one norm, in Triton's interpreter. Run by tests/kernels/test_interpreted.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fxfuse.kernels.triton import norm_linears_decode as decode
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


def operands(dtype, rows, hidden, sizes, biases="", norm="early", seed=0, weight_dtype=None):
    """(x, weight, projections, biases); ``biases`` names those that are there: q, k, v."""
    random = Random(seed)
    x = random.rows(rows, hidden).to(dtype)
    weight = (random.normal(hidden, scale=0.3) + (0.0 if norm == "offset" else 1.0)).to(weight_dtype or dtype)
    projections = [random.normal(size, hidden, scale=hidden**-0.5).to(dtype) for size in sizes]
    given = [
        random.normal(size).to(dtype) if name in biases else None for name, size in zip("qkv", sizes, strict=False)
    ]
    return x, weight, projections, given


def check_all(x, weight, projections, biases, norm):
    """The contract, for each of the results."""
    results = decode.rms_norm_linears_decode(x, weight, projections, biases, EPS, norm)
    h, exact = normed(x, weight, norm).to(x.dtype), normed(x.double(), weight.double(), norm)
    assert len(results) == len(projections)
    for result, w, bias in zip(results, projections, biases, strict=True):
        check(result, F.linear(h, w, bias), F.linear(exact, wide(w), wide(bias)), x.dtype)
    return results


@pytest.fixture
def small_card(monkeypatch):
    """One SM: every weight has rows enough for the wide tiles."""
    monkeypatch.setattr(decode, "sm_count", lambda device: 1)


# Each pair of dtype, norm, biases, rows, number of projections and tile width occurs somewhere.
CASES = [
    # dtype norm biases rows hidden sizes wide
    (BF16, "early", "", 1, 257, (23, 7, 5), False),
    (BF16, "late", "qkv", 7, 61, (53, 17, 17), True),
    (BF16, "offset", "k", 33, 96, (40, 31), True),
    (BF16, "late", "qv", 17, 61, (67, 13, 17), False),
    (FP16, "early", "qk", 64, 61, (53, 19), False),
    (FP16, "offset", "qkv", 1, 61, (37, 17, 16), True),
    (FP16, "late", "", 16, 131, (64, 32, 16), False),
    (FP16, "early", "q", 20, 64, (1, 97, 3), True),
    (FP32, "early", "v", 5, 61, (53, 17, 16), True),
    (FP32, "late", "", 1, 131, (19, 5), True),
    (FP32, "offset", "q", 64, 61, (48, 17), False),
    (FP32, "offset", "qkv", 31, 33, (23, 7, 5), False),
]


@pytest.mark.parametrize(("dtype", "norm", "biases", "rows", "hidden", "sizes", "wide_tiles", "seeds"), named(CASES))
def test_error_contract(dtype, norm, biases, rows, hidden, sizes, wide_tiles, seeds, request):
    if wide_tiles:
        request.getfixturevalue("small_card")
    for seed in seeds:
        check_all(*operands(dtype, rows, hidden, sizes, biases, norm, seed), norm)


@pytest.mark.parametrize(("norm", "weight_dtype"), [("early", FP32), ("late", FP32), ("offset", FP16)])
def test_norm_weight_of_another_dtype(norm, weight_dtype):
    check_all(*operands(BF16, 4, 61, (37, 17, 3), norm=norm, weight_dtype=weight_dtype), norm)


@pytest.mark.parametrize("rows", [1, 6, 20])
def test_strides_and_alignment(rows):
    x, weight, projections, biases = operands(BF16, rows, 64, (48, 16, 32), "qkv")
    strided = [skewed(projections[0]), projections[1].t().contiguous().t(), projections[2]]
    spread = [biases[0][:1].expand(48), biases[1].repeat_interleave(2)[::2], biases[2]]
    results = check_all(x.t().contiguous().t(), weight.repeat_interleave(3)[::3], strided, spread, "early")
    again = check_all(skewed(x), weight, projections, [b.contiguous() for b in spread], "early")
    for one, other in zip(results, again, strict=True):  # other tiles, hence another order of summation
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_leading_dimensions():
    x, weight, projections, biases = operands(FP32, 6, 33, (20, 12), "k")
    flat = check_all(x, weight, projections, biases, "late")
    for view, back in ((x.view(2, 1, 3, 33), lambda t: t.view(2, 1, 3, -1)), (x[0], lambda t: t[0])):
        results = decode.rms_norm_linears_decode(view, weight, projections, biases, EPS, "late")
        for result, want in zip(results, flat, strict=True):
            assert result.shape == back(want).shape
            torch.testing.assert_close(result, back(want), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 33), (2, 0, 33)])
def test_no_rows(shape):
    _, weight, projections, biases = operands(BF16, 1, 33, (20, 12))
    results = decode.rms_norm_linears_decode(torch.empty(shape, dtype=BF16), weight, projections, biases, EPS, "early")
    assert [r.shape for r in results] == [(*shape[:-1], 20), (*shape[:-1], 12)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 33])
def test_repeated_runs_are_bit_identical(dtype, rows):
    given = operands(dtype, rows, 61, (23, 7, 5), "qkv")
    first, second = (decode.rms_norm_linears_decode(*given, EPS, "late") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("rows", [1, 4])
def test_fp16_keeps_its_range_before_the_norm_is_applied(rows):
    x, weight, projections, biases = operands(FP16, rows, 96, (32, 40))
    x, weight = (x.clamp(-4, 4) * 15000).clamp(-65504, 65504), weight * 8
    assert (x.double() * weight.double()).abs().max() > 65504
    check_all(x, weight, [w / 8 for w in projections], biases, "early")


def test_nan_stays_in_its_row():
    x, weight, projections, biases = operands(BF16, 3, 61, (23, 7, 5))
    clean = decode.rms_norm_linears_decode(x, weight, projections, biases, EPS, "early")
    x[1, 7] = float("nan")
    for result, before in zip(
        decode.rms_norm_linears_decode(x, weight, projections, biases, EPS, "early"), clean, strict=True
    ):
        assert result[1].isnan().all()
        assert torch.equal(result[::2], before[::2])


def test_op_inside_a_compiled_function():
    op = decode.op()
    x, weight, projections, biases = operands(BF16, 3, 61, (23, 7, 5), "qv")
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(op, (x, weight, projections, biases, EPS, "early"), test_utils=tests)

    def model(x):
        q, k, v = op(x * 2, weight, projections, biases, EPS, "early")
        return torch.relu(q), k * 2, v

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(compiled(x), model(x), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "none"}, "norm is 'none', expected one of early, late, offset"),
        ({"projections": [torch.zeros(5, 61)]}, "got 1 projections and 2 biases, expected two or three"),
        ({"biases": [None]}, "got 2 projections and 1 biases, expected two or three, and a bias or None for each"),
        ({"projections": [torch.zeros(5, 61), torch.zeros(5)]}, r"projections \[\[5, 61\], \[5\]\], expected x"),
        ({"projections": [torch.zeros(5, 60)] * 2}, "x has 61 features, expected 60, the columns of the projections"),
        ({"projections": [torch.zeros(5, 61), torch.zeros(0, 61)]}, r"widths \[5, 0\] must all be positive"),
        ({"projections": [torch.zeros(5, 61), torch.zeros(5, 60)]}, r"projections\[1\] has shape \(5, 60\), expected"),
        ({"biases": [None, torch.zeros(5, dtype=BF16)]}, r"biases\[1\] is torch.bfloat16, expected torch.float32 as x"),
        ({"x": torch.zeros(65, 61)}, "x has 65 rows, expected at most 64"),
    ],
)
def test_errors_name_what_was_given_and_what_is_valid(change, message):
    x, weight, projections, biases = operands(FP32, 2, 61, (5, 5))
    given = {"x": x, "weight": weight, "projections": projections, "biases": biases, "eps": EPS, "norm": "early"}
    with pytest.raises(ValueError, match=message):
        decode.rms_norm_linears_decode(**{**given, **change})
