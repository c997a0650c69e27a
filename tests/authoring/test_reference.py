"""A pattern's reference computes, in each of its variants, what a person would write by hand."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fxfuse import PatternError
from fxfuse.library import lookup

HEADLINE = lookup("rms_norm_gated_mlp", "test")
VARIANTS = [dict(zip(HEADLINE.choices, v, strict=True)) for v in itertools.product(*HEADLINE.choices.values())]


def weights(dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    shapes = {
        "x": (3, 8), "weight": (8,), "gate": (6, 8), "up": (6, 8), "gate_up": (12, 8), "down": (8, 6),
        "gate_bias": (6,), "up_bias": (6,), "gate_up_bias": (12,), "down_bias": (8,),
    }  # fmt: skip
    made = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return {**made, "eps": 1e-5}


def by_hand(t: Mapping[str, Any], norm: str, proj: str, act: str) -> torch.Tensor:
    x, dtype = t["x"].to(torch.float32), t["x"].dtype
    x = x * (1 / ((x**2).sum(-1, keepdim=True) / x.shape[-1] + t["eps"]).sqrt())
    if norm == "early":
        h = x.to(dtype) * t["weight"]
    elif norm == "late":
        h = (x * t["weight"].to(torch.float32)).to(dtype)
    else:
        h = (x + x * t["weight"].to(torch.float32)).to(dtype)
    if proj == "separate":
        gate, up = F.linear(h, t["gate"], t["gate_bias"]), F.linear(h, t["up"], t["up_bias"])
    else:
        both = F.linear(h, t["gate_up"], t["gate_up_bias"])
        gate, up = (both[:, :6], both[:, 6:]) if proj == "packed" else (both[:, 6:], both[:, :6])
    activated = {
        "silu": lambda g: g * torch.sigmoid(g),
        "gelu": lambda g: 0.5 * g * (1 + torch.erf(g / 2**0.5)),
        "gelu_tanh": lambda g: 0.5 * g * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (g + 0.044715 * g**3))),
        "relu": lambda g: g.clamp(min=0),
    }[act](gate)
    return F.linear(activated * up, t["down"], t["down_bias"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v.values()))
def test_reference_is_the_formula(variant: dict[str, str], dtype: torch.dtype) -> None:
    tensors = weights(dtype)
    got = HEADLINE.reference(tensors, variant)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 0.05, "atol": 0.4}
    assert got.dtype is dtype
    torch.testing.assert_close(got, by_hand(tensors, **variant), **tolerance)


def test_absent_operands_need_not_be_given() -> None:
    tensors = weights(torch.float32)
    for name in ("gate_bias", "up_bias", "down_bias", "gate_up_bias", "gate_up"):
        del tensors[name]
    variant = {"norm": "early", "proj": "separate", "act": "silu"}
    zeros = {**weights(torch.float32), **{n: torch.tensor(0.0).expand(k) for n, k in
             (("gate_bias", 6), ("up_bias", 6), ("down_bias", 8))}}  # fmt: skip
    torch.testing.assert_close(HEADLINE.reference(tensors, variant), by_hand(zeros, **variant), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", [{}, {"norm": "early", "proj": "separate"}, {**VARIANTS[0], "act": "swish"}])
def test_a_variant_that_does_not_exist(variant: dict[str, str]) -> None:
    with pytest.raises(PatternError, match=r"unknown choice for one_of\('(norm|act)'\).* Valid: "):
        HEADLINE.reference(weights(torch.float32), variant)


def test_the_headline_has_the_variants_of_its_contract() -> None:
    assert set(HEADLINE.choices["norm"]) == {"early", "late", "offset"}
    assert set(HEADLINE.choices["act"]) >= {"silu", "gelu", "gelu_tanh", "relu"}
