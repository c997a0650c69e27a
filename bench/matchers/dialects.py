"""One pattern, unchanged, in the graphs of Dynamo, of export and of Inductor's passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.matchers.blocks import EPS, early_norm, late_norm
from bench.matchers.captures import LEAVES, dynamo_graph, export_graph, exported, post_grad_graph
from bench.matchers.smollm2 import Logits
from fxfuse import library
from fxfuse.match import find_sites, select
from fxfuse.view import View
from fxfuse.view.leaves import leaves_of

LAYERS = 2
PATTERN = "rms_norm_gated_mlp"


def llama(dtype: torch.dtype) -> nn.Module:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return Logits(AutoModelForCausalLM.from_config(config, dtype=dtype))


def gemma(dtype: torch.dtype) -> nn.Module:
    from transformers import AutoModelForCausalLM, GemmaConfig

    config = GemmaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, pad_token_id=0,
        hidden_act="gelu_pytorch_tanh",
    )  # fmt: skip
    return Logits(AutoModelForCausalLM.from_config(config, dtype=dtype))


class LateLayer(nn.Module):
    """GPT-OSS's norm (the scale before the cast) with a dense MLP, and biases on its projections."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.rand(32).add(0.5).to(dtype))
        self.gate, self.up = nn.Linear(32, 48, dtype=dtype), nn.Linear(32, 48, dtype=dtype)
        self.down = nn.Linear(48, 32, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        h = late_norm(x, self.norm, EPS)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class LateModel(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed = nn.Embedding(97, 32, dtype=dtype)
        self.layers = nn.ModuleList(LateLayer(dtype) for _ in range(LAYERS))
        self.norm = nn.Parameter(torch.ones(32, dtype=dtype))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return F.linear(early_norm(x, self.norm, EPS), self.embed.weight)


MODELS = {"Llama": llama, "Gemma": gemma, "GPT-OSS style, dense": LateModel}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure_dialects(dtypes: Sequence[str] = tuple(DTYPES)) -> list[dict[str, Any]]:
    """Sites of the shipped pattern in every kind of graph of every model."""
    results = []
    for name, build in MODELS.items():
        for dtype in dtypes:
            torch.manual_seed(0)
            model = build(DTYPES[dtype]).eval().requires_grad_(False)
            tokens = torch.randint(0, 97, (2, 6))
            found = {kind: count(view) for kind, view in views(model, [tokens]).items()}
            results.append({"model": name, "dtype": dtype, "sites": LAYERS, "found": found})
    return results


def views(model: nn.Module, inputs: Sequence[Tensor]) -> dict[str, View]:
    """The model's view at each level."""
    captured, examples = dynamo_graph(model, inputs)
    plain = exported(model, inputs)
    decomposed, _ = export_graph(model, inputs)
    module = exported(model, inputs).module()
    post_grad, _ = post_grad_graph(model, inputs)
    return {
        "Dynamo": View(captured.graph, examples),
        "export": View(plain.graph_module.graph, leaves=leaves_of(plain)),
        "export, module()": View(module.graph),
        "export, inference": View(decomposed.graph_module.graph, leaves=leaves_of(decomposed)),
        "post-grad": View(post_grad.graph, leaves=post_grad.meta[LEAVES]),
    }


def count(view: View) -> int:
    pattern = library.lookup(PATTERN, "bench")
    return sum(site.match is not None and site.reason is None for site in select(find_sites(view, pattern)))
