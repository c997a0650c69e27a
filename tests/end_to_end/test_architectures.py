"""Tiny random models of transformers: as many sites as the architecture has, at their paths, and eager's logits."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from end_to_end.tiny import PATTERN, PLACEMENTS, close, recorded
from torch import Tensor

import fxfuse
from fxfuse.kernels import cpu

transformers = pytest.importorskip("transformers")

LAYERS = 2
LLAMA_LIKE = {"norm": "early", "proj": "separate", "act": "silu"}
GEMMA_LIKE = {"norm": "offset", "proj": "separate", "act": "gelu_tanh"}


@dataclass(frozen=True)
class Family:
    """An architecture, and what it has of the pattern: ``variant`` is None where it has none of it."""

    config: str
    variant: Mapping[str, str] | None
    norm: str = "post_attention_layernorm"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def build(self, layers: int = LAYERS, dtype: torch.dtype = torch.float32) -> Any:
        config = getattr(transformers, self.config)(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=64, pad_token_id=0, bos_token_id=None,
            eos_token_id=None, **self.extra,
        )  # fmt: skip
        torch.manual_seed(1)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()

    def paths(self, layers: int = LAYERS) -> list[tuple[str, str]]:
        if self.variant is None:
            return []
        return [(f"model.layers.{i}.{self.norm}", f"model.layers.{i}.mlp") for i in range(layers)]


FAMILIES = {
    "llama": Family("LlamaConfig", LLAMA_LIKE),
    "qwen2": Family("Qwen2Config", LLAMA_LIKE),
    "qwen3": Family("Qwen3Config", LLAMA_LIKE),
    "mistral": Family("MistralConfig", LLAMA_LIKE),
    # Granite multiplies the MLP's output by a constant, outside the site.
    "granite": Family("GraniteConfig", LLAMA_LIKE, extra={"residual_multiplier": 0.22, "logits_scaling": 4.0}),
    "phi3": Family("Phi3Config", {**LLAMA_LIKE, "proj": "packed"}),
    "gemma": Family("GemmaConfig", GEMMA_LIKE),
    "gemma2": Family("Gemma2Config", GEMMA_LIKE, norm="pre_feedforward_layernorm"),
    # OLMo2 normalises the outputs of attention and MLP, not their inputs; GPT-OSS has experts.
    "olmo2": Family("Olmo2Config", None),
    "gpt_oss": Family("GptOssConfig", None, extra={"num_local_experts": 4, "num_experts_per_tok": 2}),
}
HAVE_IT = [name for name, family in FAMILIES.items() if family.variant is not None]
EVERY_FAMILY = pytest.mark.parametrize("name", FAMILIES)


def ids(seed: int = 0, shape: tuple[int, int] = (2, 7)) -> Tensor:
    return torch.randint(1, 97, shape, generator=torch.Generator().manual_seed(seed))


def logits(model: Any, tokens: Tensor) -> Tensor:
    return model(tokens, use_cache=False).logits


def compile_once(model: Any, tokens: Tensor, **options: Any) -> tuple[Any, fxfuse.Report]:
    backend = fxfuse.Backend(inner="eager", on_error="raise", **options)
    fast = torch.compile(model, backend=backend, fullgraph=True)
    with recorded() as reports:
        logits(fast, tokens)
    (report,) = reports
    return fast, report


def assert_sites(family: Family, report: fxfuse.Report, layers: int = LAYERS) -> None:
    assert [s.modules for s in report.sites if s.outcome == "rewritten"] == family.paths(layers)
    assert report.rewritten[PATTERN] == report.matched[PATTERN] == len(family.paths(layers))
    assert all(dict(s.variant) == family.variant for s in report.sites if s.outcome == "rewritten")


@EVERY_FAMILY
@torch.no_grad()
def test_fp32_sites_and_logits(name: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    fast, report = compile_once(model, ids())
    assert_sites(family, report)
    for seed in range(3):
        close(logits(fast, ids(seed)), logits(model, ids(seed)))


@pytest.mark.parametrize(("name", "placement"), [("llama", "share"), ("gemma2", "inline"), ("gemma", "copy")])
@torch.no_grad()
def test_fp32_logits_from_derived_weights(name: str, placement: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    expected = [logits(model, ids(seed)) for seed in range(3)]
    fast, report = compile_once(model, ids(), **PLACEMENTS[placement])
    assert_sites(family, report)
    (kernel,) = {s.kernel for s in report.sites}
    assert kernel == "stacked" or (kernel, placement) == ("cpu_kept_panels", "copy")  # where the CPU has AVX-512
    assert {s.weights for s in report.sites} == {placement}
    for seed in range(3):
        close(logits(fast, ids(seed)), expected[seed])


def relative_errors(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """The error in maximum and in RMS, each relative to the expected tensor's own."""
    difference = found.double() - expected
    rms = difference.pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()
    return float(difference.abs().max() / expected.abs().max()), float(rms)


def assert_error_contract(model: Any, fast: Any, shape: tuple[int, int] = (2, 7)) -> None:
    """Against float64 at most twice eager's error, over five inputs, with and without outlier channels."""
    embedding = model.get_input_embeddings().weight
    for outliers in (False, True):
        if outliers:
            embedding[:, ::11] *= 100
        exact = copy.deepcopy(model).double()
        for seed in range(5):
            tokens = ids(seed, shape)
            expected = logits(exact, tokens)
            eager = relative_errors(logits(model, tokens), expected)
            fused = relative_errors(logits(fast, tokens), expected)
            assert all(f <= 2 * e + 1e-3 for f, e in zip(fused, eager, strict=True)), (outliers, seed, fused, eager)


@pytest.mark.parametrize("name", HAVE_IT)
@torch.no_grad()
def test_bf16_sites_and_error_contract(name: str) -> None:
    family = FAMILIES[name]
    model = family.build(dtype=torch.bfloat16)
    fast, report = compile_once(model, ids())
    assert_sites(family, report)
    assert_error_contract(model, fast)


needs_panels = pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="needs AVX-512")


@pytest.mark.parametrize(
    ("name", "shape", "kernel"),
    [
        ("llama", (4, 13), "cpu_fp32_gemm"),
        ("phi3", (4, 13), "cpu_fp32_gemm"),
        ("gemma2", (4, 13), "cpu_fp32_gemm"),
        ("llama", (1, 1), "cpu_fp32_gemm"),
        pytest.param("phi3", (2, 7), "cpu_panels_fp32", marks=needs_panels),
        ("llama", (2, 7), "plain"),  # between one row and many oneDNN's own bf16 is the faster one
    ],
)
@torch.no_grad()
def test_bf16_on_a_cpu_without_bf16_instructions(
    name: str, shape: tuple[int, int], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")  # read anew by fxfuse, once by oneDNN
    if kernel != "cpu_panels_fp32":
        monkeypatch.setattr(cpu, "panels_unavailable", lambda: "needs AVX-512")
    family = FAMILIES[name]
    model = family.build(dtype=torch.bfloat16)
    fast, report = compile_once(model, ids(shape=shape))
    assert_sites(family, report)
    assert {s.kernel for s in report.sites} == {kernel}
    assert_error_contract(model, fast, shape)


@pytest.mark.parametrize("name", ["olmo2", "gpt_oss"])
@torch.no_grad()
def test_bf16_without_sites_is_left_bit_for_bit(name: str) -> None:
    family = FAMILIES[name]
    model = family.build(dtype=torch.bfloat16)
    fast, report = compile_once(model, ids())
    assert_sites(family, report)
    assert torch.equal(logits(fast, ids(3)), logits(model, ids(3)))


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2"])
@torch.no_grad()
def test_explain_counts_in_closed_form(name: str, layers: int) -> None:
    family = FAMILIES[name]
    report = fxfuse.explain(family.build(layers), (ids(),), {"use_cache": False}, options={"on_miss": "silent"})
    assert_sites(family, report, layers)
    assert len(report.sites) == layers


@torch.no_grad()
def test_gemma2s_other_pair_is_in_no_site() -> None:
    """`post_attention_layernorm` feeds the residual there. A kernel mapped by names fused it with the MLP: wrong."""
    report = fxfuse.explain(FAMILIES["gemma2"].build(), (ids(),), {"use_cache": False})
    assert report.rewritten[PATTERN] == LAYERS
    norms = {module.rsplit(".", 1)[-1] for site in report.sites for module in site.modules}
    assert norms == {"pre_feedforward_layernorm", "mlp"}
    assert "post_attention_layernorm" not in json.dumps(json.loads(report.to_json())["sites"])


@torch.no_grad()
def test_olmo2s_reason_is_a_row_per_layer() -> None:
    report = fxfuse.explain(FAMILIES["olmo2"].build(), (ids(),), {"use_cache": False})
    assert [(s.outcome, s.code, s.modules) for s in report.sites] == [
        ("missed", "OP", (f"model.layers.{i}.post_attention_layernorm", f"model.layers.{i}.mlp")) for i in range(LAYERS)
    ]
    for site in report.sites:
        assert "expected norm" in site.reason
        assert site.detail is not None
        assert "modeling_olmo2.py" in site.detail.graph_line
    assert report.matched[PATTERN] == 0
    assert "OP" in str(report)


@pytest.mark.parametrize("placement", ["share", "copy"])
@torch.no_grad()
def test_a_packed_projection_needs_no_derived_weight_whatever_was_asked_for(placement: str) -> None:
    """Phi-3's gate and up are one parameter, so there is nothing to stack: rewritten as it is, with a note."""
    family = FAMILIES["phi3"]
    model = family.build()
    fast, report = compile_once(model, ids(), **PLACEMENTS[placement])
    assert_sites(family, report)
    assert {s.weights for s in report.sites} == {"separate"}
    assert all(s.notes for s in report.sites)
    close(logits(fast, ids(1)), logits(model, ids(1)))
