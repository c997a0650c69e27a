"""What the library finds in real models: counts that follow from the number of layers; one bf16 capture a family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import capture

import fxfuse
from fxfuse import library

transformers = pytest.importorskip("transformers")

LAYERS = 2
LLAMA = {
    "rms_norm": 5, "add_rms_norm": 4, "rms_norm_qkv": 4, "gated_mlp": 2, "rms_norm_gated_mlp": 2, "rope": 4,
    "sibling_linears": 4, "qk_norm_rope": 0, "layer_norm_mlp": 0,
}  # fmt: skip
NEOX = {"rms_norm": 0, "gated_mlp": 0, "layer_norm_mlp": 2, "rope": 4}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "llama": ({}, LLAMA),
    "qwen3": ({}, {**LLAMA, "rms_norm": 9, "qk_norm_rope": 4}),
    "gemma3_text": ({}, {"rms_norm": 13, "rms_norm_gated_mlp": 2, "gated_mlp": 2, "rope": 4, "qk_norm_rope": 4}),
    "olmo2": ({}, {"rms_norm": 9, "rms_norm_gated_mlp": 0, "gated_mlp": 2, "rope": 4, "qk_norm_rope": 4}),
    "phi3": ({}, {"rms_norm": 5, "rms_norm_gated_mlp": 2, "rope": 4, "sibling_linears": 0}),
    "granite": ({"residual_multiplier": 0.22, "logits_scaling": 4.0}, LLAMA),
    "nanochat": ({}, {"rms_norm": 10, "rope": 0}),
    "cohere": ({}, {"rms_norm": 0, "gated_mlp": 2, "rms_norm_gated_mlp": 0, "rope": 4}),
    "gpt2": ({}, {"layer_norm_mlp": 2, "rope": 0, "sibling_linears": 0, "rms_norm": 0}),
    "gpt_neox": ({}, NEOX),
    "opt": ({"ffn_dim": 48, "word_embed_proj_dim": 32}, {"layer_norm_mlp": 2, "sibling_linears": 2, "rope": 0}),
    "gptj": (
        {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4, "n_positions": 64},
        {"layer_norm_mlp": 0, "rope": 4, "sibling_linears": 2},
    ),
    "mixtral": ({"num_local_experts": 4}, {"rms_norm": 5, "moe_experts": 2, "gated_mlp": 0, "rope": 4}),
    "bert": ({}, {"layer_norm_mlp": 2, "sibling_linears": 2, "gated_mlp": 0}),
}


def build(family: str, extra: dict[str, Any]) -> Any:
    config = transformers.AutoConfig.for_model(
        family, vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, pad_token_id=0, bos_token_id=None,
        eos_token_id=None, **extra,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)


@pytest.mark.parametrize("family", FAMILIES)
def test_counts(family):
    extra, expected = FAMILIES[family]
    with torch.no_grad():
        gm, _ = capture(build(family, extra), torch.arange(14).reshape(2, 7), use_cache=False)
    found = {name: len(library.lookup(name, "patterns").match(gm)) for name in expected}
    assert found == expected


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_all_at_once_they_compute_what_eager_does(family):
    model, ids = build(family, FAMILIES[family][0]), torch.arange(14).reshape(2, 7)
    names = ["rms_norm", "sibling_linears", "qk_norm_rope", "rope", "layer_norm_mlp", "gated_mlp"]
    with torch.no_grad():
        wanted = model(ids, use_cache=False).logits
        backend = fxfuse.Backend(inner="eager", on_error="raise", on_miss="silent", patterns=names)
        got = torch.compile(model, backend=backend, fullgraph=True)(ids, use_cache=False).logits
    assert fxfuse.reports()[-1].rewritten
    torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)


def test_the_loss_of_a_real_model():
    class Loss(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor) -> Any:
            return self.model(ids, labels=ids, use_cache=False).loss

    model, ids = Loss(build("granite", FAMILIES["granite"][0])), torch.arange(14).reshape(2, 7)
    options = {"patterns": ["linear_cross_entropy"], "kernels": {"linear_cross_entropy": "chunked"}, "inner": "eager"}
    with torch.no_grad():
        got = torch.compile(
            model, backend="fxfuse", options={**options, "expect_rewritten": {"linear_cross_entropy": 1}}
        )(ids)
        torch.testing.assert_close(got, model(ids), rtol=1e-3, atol=1e-3)
