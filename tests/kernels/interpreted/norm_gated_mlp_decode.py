"""The numbers of the gated MLP for few rows, in Triton's interpreter. Run by tests/kernels/test_interpreted.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fxfuse.kernels.triton import norm_gated_mlp_decode as decode
from tests.kernels.interpreted import contract
from tests.kernels.interpreted.contract import (
    ACTIVATIONS,
    BF16,
    EPS,
    FP16,
    FP32,
    Random,
    errors,
    named,
    normed,
    poisoned,
)

__all__ = ["poisoned"]


def operands(dtype, rows, hidden, intermediate, out, biases="", norm="early", seed=0, outliers=True, weight_dtype=None):
    """(x, weight, gate, up, down, gate_bias, up_bias, down_bias); ``biases`` names those that are there: g, u, d."""
    random = Random(seed)
    x = random.rows(rows, hidden, outliers)
    weight = random.normal(hidden, scale=0.3) + (0.0 if norm == "offset" else 1.0)
    weights = (
        random.normal(intermediate, hidden, scale=hidden**-0.5),
        random.normal(intermediate, hidden, scale=hidden**-0.5),
        random.normal(out, intermediate, scale=intermediate**-0.5),
    )
    sizes = {"g": intermediate, "u": intermediate, "d": out}
    given = [random.normal(size) if name in biases else None for name, size in sizes.items()]
    tensors = [None if t is None else t.to(dtype) for t in (x, weight, *weights, *given)]
    tensors[1] = None if norm == "none" else weight.to(weight_dtype or dtype)
    return tensors


def eager(operands, norm, act, residual=None):
    """The model's own code, with its roundings."""
    x, weight, gate, up, down, gate_bias, up_bias, down_bias = operands
    h = x if norm == "none" else normed(x, weight, norm).to(x.dtype)
    product = ACTIVATIONS[act](F.linear(h, gate, gate_bias)) * F.linear(h, up, up_bias)
    y = F.linear(product, down, down_bias)
    return y if residual is None else residual + y


def check(operands, norm, act, residual=None):
    """The contract, on these operands. Returns the fused result."""
    exact = eager([contract.wide(t) for t in operands], norm, act, contract.wide(residual))
    result = decode.rms_norm_gated_mlp_decode(*operands, EPS, norm, act, residual)
    contract.check(result, eager(operands, norm, act, residual), exact, operands[0].dtype)
    return result


@pytest.fixture
def small_card(monkeypatch):
    """One SM: every weight has rows enough for the wide tiles."""
    monkeypatch.setattr(decode, "sm_count", lambda device: 1)


@pytest.fixture
def eager_to_split(monkeypatch):
    """A free launch, so that small shapes take the split path too."""
    monkeypatch.setattr(decode, "_LAUNCH_BYTES", 0)
    monkeypatch.setattr(decode, "_MIN_SPLIT", 64)


# Chosen so that each pair of dtype, norm, act, biases, rows and tile width occurs somewhere.
CASES = [
    # dtype norm act biases rows hidden intermediate out wide
    (BF16, "early", "silu", "", 1, 257, 37, 23, False),
    (BF16, "late", "gelu", "gud", 7, 61, 97, 53, True),
    (BF16, "offset", "gelu_tanh", "gu", 16, 128, 64, 48, False),
    (BF16, "late", "relu", "d", 1, 300, 40, 70, True),
    (FP16, "early", "gelu_tanh", "gud", 1, 61, 97, 53, True),
    (FP16, "offset", "silu", "d", 7, 128, 64, 48, True),
    (FP16, "late", "gelu", "", 16, 257, 37, 23, False),
    (FP16, "early", "relu", "gu", 3, 17, 37, 41, False),
    (FP32, "early", "gelu", "d", 16, 61, 97, 53, True),
    (FP32, "late", "silu", "gu", 1, 257, 67, 31, True),
    (FP32, "offset", "relu", "gud", 7, 131, 67, 31, False),
    (FP32, "offset", "gelu_tanh", "", 1, 300, 40, 70, False),
    (BF16, "none", "silu", "gud", 1, 61, 23, 13, False),
    (FP16, "none", "gelu", "", 5, 257, 67, 31, False),
    (FP32, "none", "gelu_tanh", "u", 7, 61, 97, 53, True),
    # From 17 rows on
    (BF16, "early", "silu", "gud", 17, 131, 67, 53, True),
    (BF16, "offset", "gelu", "", 64, 64, 96, 48, False),
    (BF16, "none", "relu", "d", 37, 61, 40, 53, False),
    (FP16, "late", "gelu_tanh", "u", 31, 61, 97, 53, False),
    (FP16, "early", "silu", "", 64, 64, 96, 48, True),
    (FP32, "early", "silu", "gu", 33, 61, 67, 53, True),
    (FP32, "none", "relu", "", 32, 64, 48, 32, False),
]


@pytest.mark.parametrize(
    ("dtype", "norm", "act", "biases", "rows", "hidden", "intermediate", "out", "wide", "seeds"),
    named(CASES),
)
def test_error_contract(dtype, norm, act, biases, rows, hidden, intermediate, out, wide, seeds, request):
    if wide:
        request.getfixturevalue("small_card")
    for seed in seeds:
        check(operands(dtype, rows, hidden, intermediate, out, biases, norm, seed), norm, act)


def test_error_contract_without_outliers():
    for dtype, norm, act, biases, rows, *sizes, _ in CASES[::3]:
        check(operands(dtype, rows, *sizes, biases, norm, 5, outliers=False), norm, act)


@pytest.mark.parametrize(("norm", "weight_dtype"), [("early", FP32), ("late", FP32), ("offset", FP32), ("late", FP16)])
def test_norm_weight_of_another_dtype(norm, weight_dtype):
    check(operands(BF16, 4, 61, 37, 53, norm=norm, weight_dtype=weight_dtype), norm, "silu")


@pytest.mark.parametrize(("dtype", "rows"), [(BF16, 1), (FP32, 5), (FP16, 40)])
def test_splits_of_the_down_projection(dtype, rows, eager_to_split):
    given, residual = operands(dtype, rows, 48, 500, 12, "d"), Random(9).normal(12, rows).t().to(dtype)
    assert decode.config(rows, 48, 500, 12, dtype, 132, True, False).splits > 1
    result = check(given, "early", "silu", residual)
    again = decode.rms_norm_gated_mlp_decode(*given, EPS, "early", "silu", residual)
    assert torch.equal(result, again)


@pytest.mark.parametrize(("dtype", "rows"), [(BF16, 5), (FP16, 1), (FP32, 40)])
def test_a_residual_is_added_before_the_result_is_rounded(dtype, rows):
    given, random = operands(dtype, rows, 61, 97, 53, "gud", norm="late"), Random(9)
    check(given, "late", "gelu", random.normal(rows, 53).to(dtype))
    check(given, "late", "gelu", random.normal(53, rows).t().to(dtype))
    check(given, "late", "gelu", random.normal(53).to(dtype).expand(rows, 53))


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("rows", [1, 16, 33])
def test_repeated_runs_are_bit_identical(dtype, rows):
    given = operands(dtype, rows, 61, 97, 53, "gud")
    first, second = (decode.rms_norm_gated_mlp_decode(*given, EPS, "late", "gelu") for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("rows", [1, 6, 20])
def test_strides_and_alignment(rows):
    x, weight, gate, up, down, gate_bias, up_bias, down_bias = operands(BF16, rows, 64, 48, 32, "gud")
    strided = [
        x.t().contiguous().t(),
        weight.repeat_interleave(3)[::3],
        gate.t().contiguous().t(),
        torch.cat([up.new_full((1,), float("nan")), up.flatten()])[1:].view(48, 64),
        contract.skewed(down),
        gate_bias[:1].expand(48),
        up_bias.repeat_interleave(2)[::2],
        down_bias,
    ]
    plain = [t.contiguous() for t in strided]
    assert sum(not t.is_contiguous() for t in strided[1:]) == 5
    result = check(strided, "early", "silu")
    # Another tile, hence another order of summation: close, not equal.
    torch.testing.assert_close(result, check(plain, "early", "silu"), rtol=2e-2, atol=2e-2)


def test_leading_dimensions():
    given = operands(FP32, 6, 33, 20, 12)
    flat = decode.rms_norm_gated_mlp_decode(*given, EPS, "early", "silu")
    stacked = decode.rms_norm_gated_mlp_decode(given[0].view(2, 1, 3, 33), *given[1:], EPS, "early", "silu")
    assert torch.equal(stacked, flat.view(2, 1, 3, 12))
    permuted = given[0].view(2, 3, 33).transpose(0, 1)
    swapped = decode.rms_norm_gated_mlp_decode(permuted, *given[1:], EPS, "early", "silu")
    assert torch.equal(swapped, flat.view(2, 3, 12).transpose(0, 1))
    one = operands(FP32, 1, 33, 20, 12)
    vector = decode.rms_norm_gated_mlp_decode(one[0][0], *one[1:], EPS, "early", "silu")
    assert torch.equal(vector, decode.rms_norm_gated_mlp_decode(*one, EPS, "early", "silu")[0])


@pytest.mark.parametrize("shape", [(0, 33), (2, 0, 33)])
def test_no_rows(shape):
    given = operands(BF16, 1, 33, 20, 12)
    result = decode.rms_norm_gated_mlp_decode(torch.empty(shape, dtype=BF16), *given[1:], EPS, "early", "silu")
    assert result.shape == (*shape[:-1], 12)
    assert result.dtype == BF16


@pytest.mark.parametrize("rows", [1, 4])
def test_fp16_keeps_its_range_before_the_norm_is_applied(rows):
    given = operands(FP16, rows, 96, 32, 40, outliers=False)
    given[0] = (given[0] * 15000).clamp(-65504, 65504)
    given[1] = given[1] * 8
    assert (given[0].double() * given[1].double()).abs().max() > 65504
    given[2], given[3] = given[2] / 8, given[3] / 8
    check(given, "early", "silu")


def test_fp32_uses_tf32_only_where_torch_says_so():
    given = operands(FP32, 4, 256, 64, 40, outliers=False)
    reference = eager([contract.wide(t) for t in given], "early", "silu")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        fast = decode.rms_norm_gated_mlp_decode(*given, EPS, "early", "silu")
    finally:
        torch.set_float32_matmul_precision(before)
    assert 1e-5 < errors(fast, reference)[1] < 1e-3
    assert errors(decode.rms_norm_gated_mlp_decode(*given, EPS, "early", "silu"), reference)[1] < 1e-6


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_nan_stays_in_its_row(dtype):
    given = operands(dtype, 3, 61, 37, 53)
    clean = decode.rms_norm_gated_mlp_decode(*given, EPS, "early", "relu")
    given[0][1, 7] = float("nan")
    result = decode.rms_norm_gated_mlp_decode(*given, EPS, "early", "relu")
    assert result[1].isnan().all()
    assert torch.equal(result[::2], clean[::2])


def test_offsets_beyond_int32():
    stride = 2**30
    try:
        storage = torch.UntypedStorage(2 * (3 * stride + 64))  # hardly touched, so hardly any memory
    except RuntimeError:
        pytest.skip("no 6 GB of address space")
    given = operands(FP16, 2, 48, 4, 24)
    gate = torch.empty(0, dtype=FP16).set_(storage, 0, (4, 48), (stride, 1))
    gate.copy_(given[2])
    expected = decode.rms_norm_gated_mlp_decode(*given, EPS, "early", "silu")
    given[2] = gate
    assert torch.equal(decode.rms_norm_gated_mlp_decode(*given, EPS, "early", "silu"), expected)


def test_op_runs_inside_a_compiled_model():
    op = decode.op()
    assert op is torch.ops.fxfuse.rms_norm_gated_mlp_decode.default
    given = operands(BF16, 3, 61, 37, 53, "gu")
    torch.library.opcheck(op, (*given, EPS, "early", "silu"), test_utils=("test_schema", "test_faketensor"))

    def model(x):
        return torch.relu(op(x * 2, *given[1:], EPS, "early", "silu"))

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(given[0]), model(given[0]))
