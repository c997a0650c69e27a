"""`rms_norm`: every spelling of its five variants, and what is nearly one of them and is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spelled import EVERY_DTYPE, LOW, Spelled, noise, refusal, run, variants
from torch import nn

EPS = 1e-6


def factor(h: Any) -> Any:
    return torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)


SPELLINGS = {
    "llama": ("early", lambda m, x: m.w * (x.float() * factor(x.float())).to(x.dtype)),
    "t5": ("early", lambda m, x: m.w * (x * factor(x.to(torch.float32))).to(x.dtype)),
    "llama4": ("early", lambda m, x: (x.float() * factor(x.float())).type_as(x) * m.w),
    "quotient": (
        "early",
        lambda m, x: m.w * (x.float() / torch.sqrt(x.float().square().mean(-1, True) + EPS)).to(x.dtype),
    ),
    "olmo2": ("late", lambda m, x: (m.w * (x.float() * factor(x.float()))).to(x.dtype)),
    "gemma4": (
        "late",
        lambda m, x: (x.float() * torch.pow(x.float().pow(2).mean(-1, True) + EPS, -0.5) * m.w.float()).type_as(x),
    ),
    "function": ("late", lambda m, x: F.rms_norm(x, (16,), m.w, EPS)),
    "gemma": ("offset", lambda m, x: (x.float() * factor(x.float()) * (1.0 + m.w.float())).type_as(x)),
    "llama4_l2": ("bare", lambda m, x: (x.float() * factor(x.float())).type_as(x)),
    "function_bare": ("bare", lambda m, x: F.rms_norm(x, (16,), None, EPS)),
    "deepseek_v4": ("rounded", lambda m, x: x * factor(x.float()).to(x.dtype)),
}  # fmt: skip
IN_FP32 = {"late": "early", "rounded": "bare"}
"""Variants that round differently are one function in fp32; the first declared is reported."""


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name, dtype):
    variant, body = SPELLINGS[name]
    model, x = Spelled(body, dtype, w=(16,)), noise(2, 3, 16, dtype=dtype)
    wanted = variant if dtype is LOW else IN_FP32.get(variant, variant)
    assert variants(model, x, pattern="rms_norm") == [{"norm": wanted}]


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("name", ["llama", "t5", "deepseek_v4", "llama4_l2"])
def test_rewritten_it_computes_the_same(name, dtype):
    model, x = Spelled(SPELLINGS[name][1], dtype, w=(16,)), noise(2, 3, 16, dtype=dtype)
    run(model, x, pattern="rms_norm", expect=1)
    run(model, x, pattern="rms_norm", expect=1, exact=False, kernels={"rms_norm": "reference"})


def test_module_of_torch():
    assert variants(nn.RMSNorm(16, eps=EPS).to(LOW), noise(2, 16, dtype=LOW), pattern="rms_norm") == [{"norm": "late"}]


OTHERS = {
    "other_dimension": lambda m, x: m.w * (x.float() * torch.rsqrt(x.float().pow(2).mean(-2, True) + EPS)).to(x.dtype),
    "sum": lambda m, x: m.w * (x.float() * torch.rsqrt(x.float().pow(2).sum(-1, True) + EPS)).to(x.dtype),
    "cube": lambda m, x: m.w * (x.float() * torch.rsqrt(x.float().pow(3).mean(-1, True) + EPS)).to(x.dtype),
    "root": lambda m, x: m.w * (x.float() * torch.sqrt(x.float().pow(2).mean(-1, True) + EPS)).to(x.dtype),
    "exponent": lambda m, x: m.w * (x.float() * torch.pow(x.float().pow(2).mean(-1, True) + EPS, -0.25)).to(x.dtype),
    "of_another": lambda m, x: m.w * (x.sin().float() * factor(x.float())).to(x.dtype),
    "eps_outside": lambda m, x: m.w * (x.float() * (torch.rsqrt(x.float().pow(2).mean(-1, True)) + EPS)).to(x.dtype),
}


OTHER_CODES = {"other_dimension": "LITERAL", "of_another": "BINDING"}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_another_function_is_left(name):
    code = refusal(Spelled(OTHERS[name], w=(16,)), noise(2, 3, 16), pattern="rms_norm")
    assert code == (None if name in ("root", "exponent") else OTHER_CODES.get(name, "OP"))


ROUNDED_OTHERWISE = {
    "statistics": lambda m, x: m.w * (x.float() * torch.rsqrt(x.pow(2).mean(-1, True) + EPS).float()).to(x.dtype),
    "all_in_bf16": lambda m, x: m.w * (x * torch.rsqrt(x.pow(2).mean(-1, True) + EPS)),
    "factor_before_scale": lambda m, x: m.w * x * factor(x.float()),
}


@pytest.mark.parametrize("name", ROUNDED_OTHERWISE)
def test_what_rounds_elsewhere_is_left_in_bf16(name):
    model = Spelled(ROUNDED_OTHERWISE[name], LOW, w=(16,))
    assert refusal(model, noise(2, 3, 16, dtype=LOW), pattern="rms_norm") in {"OP", "DTYPE", "ALTERNATIVES", "BINDING"}


def test_t5_spelling_with_a_scalar_tensor_is_left():
    """A 0-dimensional fp32 tensor does not promote: the product is in bf16."""
    model = Spelled(lambda m, x, s: m.w * (x * s), LOW, w=(16,))
    assert refusal(model, noise(2, 16, dtype=LOW), torch.tensor(2.0), pattern="rms_norm") is None


def test_a_layer_norm_by_hand_is_none():
    def cohere(m, x):
        h = x.float()
        centred = h - h.mean(-1, keepdim=True)
        return (m.w.float() * (centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + EPS))).to(x.dtype)

    for dtype in EVERY_DTYPE:
        assert refusal(Spelled(cohere, dtype, w=(16,)), noise(2, 16, dtype=dtype), pattern="rms_norm") == "CONSTRAINT"


def test_behind_a_gate():
    """Mamba 2: the product with the gate is in fp32, the norm hands on the dtype of its weight."""

    def gated(m, x, gate):
        h = x.float() * F.silu(gate.float())
        return m.w * (h * factor(h)).to(x.dtype)

    for dtype, variant in zip(EVERY_DTYPE, ("early", "narrowed"), strict=True):
        model, inputs = Spelled(gated, dtype, w=(16,)), (noise(2, 16, dtype=dtype), noise(2, 16, dtype=dtype, seed=8))
        assert variants(model, *inputs, pattern="rms_norm") == [{"norm": variant}]
        run(model, *inputs, pattern="rms_norm", expect=1)
        run(model, *inputs, pattern="rms_norm", expect=1, exact=False, kernels={"rms_norm": "reference"})
