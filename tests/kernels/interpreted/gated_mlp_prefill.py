"""The numbers of the gated MLP's prefill GEMM, in Triton's interpreter. Run by tests/kernels/test_interpreted.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fxfuse.kernels.triton import gated_mlp_prefill as prefill
from fxfuse.kernels.triton.tiles import Tile
from tests.kernels.interpreted.contract import (
    ACTIVATIONS,
    BF16,
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


def operands(dtype, rows, hidden, intermediate, biases="", norm="early", seed=0, weight_dtype=None):
    """(x, weight, gate, up, gate_bias, up_bias); ``biases`` names those that are there: g, u."""
    random = Random(seed)
    x = random.rows(rows, hidden).to(dtype)
    weight = (random.normal(hidden, scale=0.3) + (0.0 if norm == "offset" else 1.0)).to(weight_dtype or dtype)
    gate, up = (random.normal(intermediate, hidden, scale=hidden**-0.5).to(dtype) for _ in range(2))
    given = [random.normal(intermediate).to(dtype) if name in biases else None for name in "gu"]
    return [x, None if norm == "none" else weight, gate, up, *given]


def eager(x, weight, gate, up, gate_bias, up_bias, norm, act):
    """The model's own code, with its roundings."""
    h = x if norm == "none" else normed(x, weight, norm).to(x.dtype)
    return ACTIVATIONS[act](F.linear(h, gate, gate_bias)) * F.linear(h, up, up_bias)


def check_product(operands, norm, act):
    """The contract, on these operands. Returns the fused result."""
    result = prefill.gated_product_prefill(*operands, EPS, norm, act)
    exact = eager(*map(wide, operands), norm, act)
    check(result, eager(*operands, norm, act), exact, operands[0].dtype)
    return result


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of which a small matrix has many, and three programs to take them; halves of 8 columns."""
    monkeypatch.setattr(
        prefill, "TILES", {kind: dict.fromkeys((2, 4), Tile(16, 16, 32, 4, 2)) for kind in prefill.TILES}
    )
    monkeypatch.setattr(prefill, "sm_count", lambda device: 3)


@pytest.fixture
def without_descriptors(monkeypatch):
    monkeypatch.setattr(prefill, "has_descriptors", lambda device: False)


# With a hidden and intermediate size that 16 divides, tiles are copied by descriptors, unless the card has none.
CASES = [
    # dtype norm act biases rows hidden intermediate descriptors
    (BF16, "early", "silu", "", 67, 64, 48, True),
    (BF16, "late", "gelu", "gu", 33, 96, 16, True),
    (BF16, "offset", "gelu_tanh", "u", 70, 61, 37, True),
    (BF16, "none", "relu", "g", 17, 64, 32, False),
    (FP16, "early", "gelu_tanh", "gu", 65, 32, 48, True),
    (FP16, "late", "relu", "", 37, 64, 32, False),
    (FP16, "offset", "silu", "g", 1, 61, 23, True),
    (FP16, "none", "gelu", "gu", 47, 80, 16, True),
    (FP32, "early", "relu", "u", 67, 64, 32, True),
    (FP32, "offset", "gelu", "", 31, 61, 37, False),
    (FP32, "late", "gelu_tanh", "g", 1, 33, 48, False),
    (FP32, "none", "silu", "gu", 40, 64, 16, True),
]


@pytest.mark.parametrize(
    ("dtype", "norm", "act", "biases", "rows", "hidden", "intermediate", "descriptors", "seeds"), named(CASES)
)
def test_error_contract(dtype, norm, act, biases, rows, hidden, intermediate, descriptors, seeds, request):
    if not descriptors:
        request.getfixturevalue("without_descriptors")
    for seed in seeds:
        check_product(operands(dtype, rows, hidden, intermediate, biases, norm, seed), norm, act)


def test_the_two_ways_to_read_tiles_agree(monkeypatch):
    given = operands(BF16, 37, 64, 48, "gu")
    asked = []
    monkeypatch.setattr(prefill, "has_descriptors", lambda device: bool(asked.append(device)) or True)
    described = check_product(given, "early", "silu")
    assert asked
    monkeypatch.setattr(prefill, "has_descriptors", lambda device: False)
    assert torch.equal(check_product(given, "early", "silu"), described)


@pytest.mark.parametrize(("rows", "programs"), [(3, 132), (200, 5), (16 * 9, 4), (16 * 17, 7)])
def test_every_tile_is_computed_whatever_the_grid(rows, programs, monkeypatch):
    """More programs than tiles, fewer, and groups of rows of tiles that are full, cut and several."""
    monkeypatch.setattr(prefill, "sm_count", lambda device: programs)
    check_product(operands(FP32, rows, 32, 48), "early", "silu")


def test_rows_longer_than_registers(monkeypatch):
    from fxfuse.kernels.triton.rms_norm import RowTile

    monkeypatch.setattr(prefill, "row_tile", lambda hidden: RowTile(4, 32, 4))
    for dtype in (BF16, FP16, FP32):
        check_product(operands(dtype, 5, 109, 16, norm="offset"), "offset", "silu")


@pytest.mark.parametrize(("norm", "weight_dtype"), [("early", FP32), ("offset", FP16)])
def test_norm_weight_of_another_dtype(norm, weight_dtype):
    check_product(operands(BF16, 20, 64, 32, norm=norm, weight_dtype=weight_dtype), norm, "silu")


@pytest.mark.parametrize("norm", ["none", "late"])
def test_strides_and_alignment(norm):
    x, weight, gate, up, gate_bias, up_bias = operands(BF16, 20, 64, 32, "gu", norm=norm)
    spread = None if weight is None else weight.repeat_interleave(3)[::3]
    want = check_product([x, weight, gate, up, gate_bias, up_bias], norm, "silu")
    biases = [gate_bias.repeat_interleave(2)[::2], up_bias]
    padded = torch.cat([gate, gate], 1)[:, :64]  # aligned rows, further apart than they are long
    for a, b, c in (
        (x.t().contiguous().t(), gate, up),
        (skewed(x), gate, up),
        (x, padded, up),
        (x, skewed(gate), up.t().contiguous().t()),
        (x.view(4, 5, 64).transpose(0, 1).contiguous().transpose(0, 1).reshape(20, 64), gate, up),
    ):
        result = check_product([a, spread, b, c, *biases], norm, "silu")
        torch.testing.assert_close(result, want, rtol=2e-2, atol=2e-2)


def test_leading_dimensions():
    given = operands(FP32, 24, 33, 20)
    flat = prefill.gated_product_prefill(*given, EPS, "early", "silu")
    stacked = prefill.gated_product_prefill(given[0].view(2, 3, 4, 33), *given[1:], EPS, "early", "silu")
    assert torch.equal(stacked, flat.view(2, 3, 4, 20))


@pytest.mark.parametrize("shape", [(0, 33), (2, 0, 33)])
def test_no_rows(shape):
    given = operands(BF16, 1, 33, 20)
    result = prefill.gated_product_prefill(torch.empty(shape, dtype=BF16), *given[1:], EPS, "early", "silu")
    assert (result.shape, result.dtype) == ((*shape[:-1], 20), BF16)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_repeated_runs_are_bit_identical(dtype):
    given = operands(dtype, 40, 64, 48, "gu")
    first, second = (prefill.gated_product_prefill(*given, EPS, "late", "gelu") for _ in range(2))
    assert torch.equal(first, second)


def test_fp16_keeps_its_range_before_the_norm_is_applied():
    given = operands(FP16, 20, 96, 32)
    given[0] = (given[0].clamp(-4, 4) * 15000).clamp(-65504, 65504)
    given[1] = given[1] * 8
    assert (given[0].double() * given[1].double()).abs().max() > 65504
    given[2], given[3] = given[2] / 8, given[3] / 8
    check_product(given, "early", "silu")


def test_small_rows_keep_their_precision():
    """A row whose root mean square is far below 1 would be subnormal in fp16, were it scaled by less than 1."""
    given = operands(FP16, 20, 96, 32)
    given[0] = given[0] / given[0].abs().max() * 2e-3
    check_product(given, "early", "silu")


def test_rows_whose_squares_leave_the_range_of_fp32():
    """Eager has r = 0 there, and a zero row; what the GEMM would be given may not be infinite."""
    given = operands(BF16, 4, 64, 32, norm="late")
    given[0][1] = given[0][1].sign() * 1e38
    given[1] = given[1].abs() * 8
    result = check_product(given, "late", "silu")
    assert not result[1].any()


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_nan_and_zero_rows(dtype):
    given = operands(dtype, 20, 64, 32)
    given[0][2] = 0.0
    clean = check_product(given, "early", "relu")
    given[0][1, 7] = float("nan")
    result = prefill.gated_product_prefill(*given, EPS, "early", "relu")
    assert result[1].isnan().all()
    assert torch.equal(result[2:], clean[2:])
    assert not result[2].any()


def test_fp32_uses_tf32_only_where_torch_says_so():
    given = operands(FP32, 20, 256, 32)
    exact = eager(*map(wide, given), "early", "silu")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        fast = prefill.gated_product_prefill(*given, EPS, "early", "silu")
    finally:
        torch.set_float32_matmul_precision(before)
    assert 1e-5 < ((fast - exact).norm() / exact.norm()).item() < 1e-3
    precise = prefill.gated_product_prefill(*given, EPS, "early", "silu")
    assert ((precise - exact).norm() / exact.norm()).item() < 1e-6


def test_op_inside_a_compiled_function():
    op = prefill.op()
    given = operands(BF16, 20, 64, 32, "gu")
    torch.library.opcheck(op, (*given, EPS, "early", "silu"), test_utils=("test_schema", "test_faketensor"))

    def model(x):
        return torch.relu(op(x * 2, *given[1:], EPS, "early", "silu"))

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(given[0]), model(given[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "none"}, "norm is 'none', expected one of early, late, offset"),
        ({"act": "swish"}, "act is 'swish', expected one of silu, gelu, gelu_tanh, relu"),
        ({"x": torch.zeros((), dtype=BF16)}, r"got x \[\], gate \[16, 32\], expected x \[..., hidden\]"),
        ({"x": torch.zeros(2, 31, dtype=BF16)}, "x has 31 features, expected 32, the columns of gate"),
        ({"gate": torch.zeros(0, 32, dtype=BF16)}, "hidden 32 and intermediate 0 must both be positive"),
        ({"up": torch.zeros(15, 32, dtype=BF16)}, r"up has shape \(15, 32\), expected \(16, 32\)"),
        ({"up_bias": torch.zeros(16)}, "up_bias is torch.float32, expected torch.bfloat16 as x"),
    ],
)
def test_errors_name_what_was_given_and_what_is_valid(change, message):
    names = ("x", "weight", "gate", "up", "gate_bias", "up_bias")
    given = dict(zip(names, operands(BF16, 2, 32, 16), strict=True)) | {"eps": EPS, "norm": "early", "act": "silu"}
    with pytest.raises(ValueError, match=message):
        prefill.gated_product_prefill(**(given | change))
