"""What is compiled, and the ways to compile it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

ARMS = {
    "whole": "Inductor, the graph as one",
    "dedup": "Dynamo's use_graph_deduplication",
    "by_hand": "each layer compiled by hand",
    "fxfuse_off": "fxfuse, reuse='off'",
    "fxfuse": "fxfuse, reuse='auto'",
}
PROMPT, POSITIONS = 64, 128


@dataclass(frozen=True)
class Case:
    """A model and one of its graphs."""

    model: str
    graph: str
    layers: int = 30


def load(case: Case) -> Any:
    """The model, frozen, in fp32."""
    if case.model == "smollm2":
        from fxfuse.demo.load import load as load_demo

        return load_demo(None, torch.float32, "cpu").model.requires_grad_(False).eval()
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=case.layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=POSITIONS, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def call_of(case: Case, model: Any) -> Callable[[Callable[..., Any]], torch.Tensor]:
    """One call of a (compiled) model on the case's inputs; decode writes the same place of its cache each time."""
    tokens = torch.arange(PROMPT)[None] % model.config.vocab_size
    if case.graph == "prefill":
        return lambda run: run(tokens, use_cache=False).logits
    import transformers

    cache = transformers.StaticCache(config=model.config, max_cache_len=POSITIONS)
    position = torch.tensor([PROMPT])
    model(tokens, past_key_values=cache, use_cache=True)
    written = [torch.as_tensor(n).clone() for n in _lengths(cache)]

    def decode(run: Callable[..., Any]) -> torch.Tensor:
        for length, was in zip(_lengths(cache), written, strict=True):
            length.copy_(was)
        given = {"past_key_values": cache, "use_cache": True, "cache_position": position}
        return run(tokens[:, :1], **given).logits

    return decode


def _lengths(cache: Any) -> list[torch.Tensor]:
    """What the cache counts its tokens by, where it counts."""
    held = (getattr(layer, "cumulative_length", None) for layer in cache.layers)
    return [length for length in held if isinstance(length, torch.Tensor)]


def compile_by(arm: str, model: Any) -> Callable[..., Any]:
    """The model, compiled in one of the ways."""
    if arm == "by_hand":
        for layer in model.model.layers:
            layer.compile()
        return model
    if arm == "dedup":
        torch._dynamo.config.use_graph_deduplication = True
    if arm in {"whole", "dedup"}:
        return torch.compile(model)
    import fxfuse

    return torch.compile(model, backend=fxfuse.Backend(reuse="off" if arm == "fxfuse_off" else "auto"))
