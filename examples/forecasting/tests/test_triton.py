"""The Triton kernel without a GPU: compiled for cards that are not here, and imported only when it is needed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from fxfuse_forecasting import kernels

from fxfuse.testing import assert_compiles

TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


@pytest.mark.skipif(kernels.INTERPRETED, reason="nothing is compiled under TRITON_INTERPRET=1")
@pytest.mark.parametrize(
    ("dtype", "size", "tanh"),
    [
        (torch.bfloat16, 100, False),
        (torch.bfloat16, kernels.LARGEST, True),
        (torch.float16, 1024, False),
        (torch.float32, kernels.LARGEST, False),
    ],
)
def test_every_card(dtype: torch.dtype, size: int, tanh: bool) -> None:
    pytest.importorskip("triton", reason="Triton is an extra, and brought by some builds of torch only")
    from fxfuse_forecasting.triton import gate_add_norm as module

    meta = module.launch_meta(size)
    pointers = ("packed_ptr", "skip_ptr", "weight_ptr", "bias_ptr", "out_ptr")
    signature = {**dict.fromkeys(pointers, TYPES[dtype]), "n": "i32", "eps": "fp32"}
    constants = {"TANH": tanh, "BIAS": True, "BLOCK": meta["BLOCK"]}
    used = assert_compiles(module.gate_add_norm_kernel, signature, constants, num_warps=meta["num_warps"])
    assert set(used) == {"sm_80", "sm_90", "sm_100", "gfx942"}


def test_the_pack_imports_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import fxfuse_forecasting.kernels, fxfuse_forecasting.triton"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not kernels.INTERPRETED and not torch.cuda.is_available(), reason="nothing runs the kernel here")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": "relu"}, "gate is 'relu', expected one of glu, sigmoid, gtu"),
        ({"skip": (2, 5)}, r"packed \[2, 8\] and skip \[2, 5\] do not fit a weight of 4 elements"),
        ({"packed": (3, 8)}, r"packed \[3, 8\] and skip \[2, 4\] do not fit"),
        ({"bias": (5,)}, r"bias has shape \(5,\), expected \(4,\)"),
    ],
)
def test_errors_name_what_was_given(change: dict[str, Any], message: str) -> None:
    from fxfuse_forecasting.triton.gate_add_norm import gate_add_norm

    given = {"packed": (2, 8), "skip": (2, 4), "weight": (4,), "bias": (4,), "eps": 1e-5, "gate": "glu", **change}
    values: Any = {name: torch.zeros(v) if isinstance(v, tuple) else v for name, v in given.items()}
    with pytest.raises(ValueError, match=message):
        gate_add_norm(**values)
