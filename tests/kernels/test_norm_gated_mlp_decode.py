"""The gated MLP for few rows: its choices and its errors. Its numbers: `interpreted/norm_gated_mlp_decode.py`."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from fxfuse.kernels.triton import norm_gated_mlp_decode as decode
from fxfuse.kernels.triton.tiles import CONFIGS

ROOT = Path(__file__).parents[2]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def operands(rows=2, hidden=64, intermediate=96, out=48, dtype=BF16):
    shapes = ((rows, hidden), (hidden,), (intermediate, hidden), (intermediate, hidden), (out, intermediate))
    tensors = [torch.zeros(shape, dtype=dtype) for shape in shapes]
    values = [*tensors, None, None, None, 1e-6, "early", "silu", None]
    return dict(zip(inspect.signature(decode.rms_norm_gated_mlp_decode).parameters, values, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "Late"}, "norm is 'Late', expected one of early, late, offset"),
        ({"act": "swish"}, "act is 'swish', expected one of silu, gelu, gelu_tanh, relu"),
        ({"x": torch.zeros(2, 64, dtype=torch.float64)}, "x is torch.float64, expected one of torch.bfloat16, .*"),
        ({"x": torch.zeros(65, 64, dtype=BF16)}, "x has 65 rows, expected at most 64"),
        ({"weight": None}, "norm is 'early', expected one of none"),
        ({"norm": "none"}, "norm is 'none', expected one of early, late, offset"),
        ({"residual": torch.zeros(48, dtype=BF16)}, r"residual has shape \(48,\), expected \(2, 48\)"),
        ({"x": torch.zeros(2, 63, dtype=BF16)}, "x has 63 features, expected 64, the columns of gate"),
        ({"x": torch.zeros((), dtype=BF16)}, r"got x \[\], .*expected x \[..., hidden\]"),
        ({"up": torch.zeros(95, 64, dtype=BF16)}, r"up has shape \(95, 64\), expected \(96, 64\)"),
        ({"up": torch.zeros(96, 64)}, "up is torch.float32, expected torch.bfloat16 as x"),
        ({"weight": torch.zeros(64, dtype=torch.int32)}, "weight is torch.int32, expected one of .*"),
        ({"down_bias": torch.zeros(49, dtype=BF16)}, r"down_bias has shape \(49,\), expected \(48,\)"),
        ({"gate_bias": torch.zeros(96, device="meta", dtype=BF16)}, "gate_bias is on meta, expected cpu as x"),
        ({"down": torch.zeros(0, 96, dtype=BF16)}, "hidden 64, intermediate 96 and out 0 must all be positive"),
    ],
)
def test_errors_name_what_was_given_and_what_is_valid(change, message):
    with pytest.raises(ValueError, match=message):
        decode.rms_norm_gated_mlp_decode(**operands() | change)


def test_config_takes_narrow_tiles_for_weights_with_few_rows():
    # Llama-3-8B on 132 SMs: gate and up fill the card with wide tiles, the down projection does not.
    chosen = decode.config(4, 4096, 14336, 4096, BF16, 132)
    tiles = CONFIGS[2, 16]
    assert chosen == decode.Config(tiles.wide, tiles.narrow, 1)
    unaligned = decode.config(4, 4096, 14336, 4096, BF16, 132, gate_up_aligned=False, down_aligned=False)
    assert (unaligned.gate_up, unaligned.down) == (tiles.unaligned, tiles.unaligned)


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize(("hidden", "intermediate"), [(1024, 3072), (4096, 14336), (8192, 28672)])
def test_config_does_not_split_where_the_grid_fills_the_card(rows, hidden, intermediate):
    assert decode.config(rows, hidden, intermediate, hidden, BF16, 132).splits == 1


def test_config_splits_where_few_programs_would_read_long_rows():
    chosen = decode.config(8, 512, 16384, 512, BF16, 132)
    assert chosen.splits > 1
    assert chosen.splits * (512 // chosen.down.block_n) <= 2 * 132


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize(("rows", "padded"), [(1, 1), (2, 16), (16, 16), (17, 32), (33, 64), (64, 64)])
def test_config_returns_only_shipped_tiles(dtype, rows, padded):
    tiles = CONFIGS[dtype.itemsize, padded]
    for size in (1, 97, 4096, 100_000):
        for aligned in (True, False):
            chosen = decode.config(rows, size, size, size, dtype, 132, aligned, aligned)
            assert {chosen.gate_up, chosen.down} <= {tiles.wide, tiles.narrow, tiles.unaligned}
            assert chosen.gate_up.block_m >= rows


def test_importing_the_package_does_not_import_triton():
    code = "import fxfuse.kernels.triton, sys; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
