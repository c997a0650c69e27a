"""Transformers as other people write them: as many sites as are there, right in fp32 and bf16, and none in a mutant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from styles.models import (
    diffusers,
    gpt_fast,
    lit_gpt,
    llama2c,
    mistral,
    nanochat,
    nanogpt,
    t5,
    timm,
    torchtune,
    x_transformers,
)
from styles.models.common import VOCAB, Style
from torch import nn

from bench.coverage.arms import ALL, arms_of
from bench.coverage.worker import run_model

STYLES = [
    diffusers.STYLE,
    gpt_fast.STYLE,
    lit_gpt.GEMMA,
    lit_gpt.LLAMA,
    llama2c.STYLE,
    mistral.STYLE,
    nanochat.STYLE,
    nanogpt.STYLE,
    t5.STYLE,
    timm.GLU,
    timm.SWIGLU,
    torchtune.STYLE,
    x_transformers.STYLE,
]
MUTANTS = [(style, name) for style in STYLES for name in style.mutants]
CORE = ("rms_norm", "add_rms_norm", "rms_norm_gated_mlp", "gated_mlp", "rms_norm_qkv")
"""Of these a style that does not name one has none."""


def call(model: Any, seed: int, of: nn.Module | None = None) -> dict[str, torch.Tensor]:
    tokens = torch.randint(VOCAB, (2, 7), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return {"logits": model(tokens)}


def run(build: Any, expect: Mapping[str, int], dtype: torch.dtype) -> dict[str, int]:
    torch.manual_seed(0)
    patterns = sorted({*CORE, *expect})
    record = run_model(build().to(dtype).eval(), call, arms_of(patterns, together=(ALL,)))
    found = {name: record["arms"][name]["rewritten"].get(name, 0) for name in patterns}
    assert record["status"] == "ok", record
    return found


def full(expect: Mapping[str, int]) -> dict[str, int]:
    return {**dict.fromkeys(CORE, 0), **expect}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("style", STYLES, ids=[s.name for s in STYLES])
def test_sites_and_numbers(style: Style, dtype: torch.dtype) -> None:
    expect = {**style.expect, **(style.bf16 if dtype == torch.bfloat16 else {})}
    assert run(style.build, expect, dtype) == full(expect)


@pytest.mark.parametrize(("style", "name"), MUTANTS, ids=[f"{s.name}: {n}" for s, n in MUTANTS])
def test_one_edit_takes_the_sites_away(style: Style, name: str) -> None:
    build, expect = style.mutants[name]
    left = {**dict.fromkeys(style.expect, 0), **expect}
    assert run(build, left, torch.float32) == full(left)
