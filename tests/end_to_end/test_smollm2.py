"""The real thing: SmolLM2-135M-Instruct from the demo's wheel, thirty sites in thirty layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from end_to_end.tiny import PATTERN, compiled, count, placed, recorded

import fxfuse

LAYERS = 30


@pytest.fixture(scope="module")
def smollm2() -> Any:
    pytest.importorskip("transformers")
    from fxfuse.demo.load import DemoError, load

    try:
        loaded = load(None, torch.float32, "cpu")
    except DemoError as missing:
        pytest.skip(str(missing))
    loaded.model.requires_grad_(False)
    return loaded


@pytest.fixture
def tokens(smollm2: Any) -> torch.Tensor:
    return smollm2.encode("What is a fused kernel?")


@torch.no_grad()
def test_thirty_of_thirty_in_less_than_a_second(smollm2: Any, tokens: torch.Tensor) -> None:
    report = fxfuse.explain(
        smollm2.model, (tokens,), {"use_cache": False}, options={"expect_rewritten": {PATTERN: LAYERS}}
    )
    assert report.rewritten[PATTERN] == report.matched[PATTERN] == len(report.sites) == LAYERS
    assert [s.modules for s in report.sites] == [
        (f"model.layers.{i}.post_attention_layernorm", f"model.layers.{i}.mlp") for i in range(LAYERS)
    ]
    assert all(dict(s.variant) == {"norm": "early", "proj": "separate", "act": "silu"} for s in report.sites)
    assert {(s.weights, s.extra_bytes) for s in report.sites} == {("separate", 0)}
    assert report.graphs == 1
    assert report.own_seconds < 1
    text = str(report)
    assert f"{PATTERN}: 30 rewritten" in text
    assert "x30 model.layers.{0-29}.post_attention_layernorm + model.layers.{0-29}.mlp" in text


@torch.no_grad()
def test_logits_are_eagers(smollm2: Any, tokens: torch.Tensor) -> None:
    model = smollm2.model
    expected = model(tokens, use_cache=False).logits
    with recorded() as reports:
        fast = compiled(model, weights="auto", inner="aot_eager", fullgraph=True)
        found = fast(tokens, use_cache=False).logits
    assert count(reports) == LAYERS
    placed(model, "separate", LAYERS, reports)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)  # logits up to about 30
