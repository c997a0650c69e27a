"""Match time by size of the graph: the same layers for all, each matcher on its own kind of graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.passes.utils.matcher_utils import SubgraphMatcher

from bench.matchers.arms import fx as fx_arm
from bench.matchers.arms import inductor, onnx
from bench.matchers.captures import LEAVES, dynamo_graph, export_graph, onnx_model, post_grad_graph
from bench.matchers.layers import SHAPE, DecoderLayer
from bench.matchers.repeating import count, holder_of, repeated, repeated_onnx
from bench.matchers.timing import Times, measure
from fxfuse import library
from fxfuse.match import find_sites, select
from fxfuse.view import View

SIZES = (1_000, 10_000, 100_000)


@dataclass
class Sized:
    """One arm at one size."""

    arm: str
    size: int
    layers: int
    nodes: int
    times: Times

    @property
    def per_thousand(self) -> float:
        """Milliseconds of processor time for 1,000 nodes of the arm's own graph; all arms are one Python thread."""
        return self.times.process_seconds * 1e6 / self.nodes


def ours(gm: fx.GraphModule) -> int:
    """A view, every pattern of the default library, gates, near misses, selection."""
    view = View(gm.graph, leaves=gm.meta.get(LEAVES))
    found = [site for pattern in library.defaults() for site in find_sites(view, pattern)]
    return sum(site.match is not None for site in select(found))


def fx_match(matcher: SubgraphMatcher, gm: fx.GraphModule) -> int:
    return len(matcher.match(gm.graph))


def inductor_search(made: Any, gm: fx.GraphModule) -> int:
    """The first of Inductor's two steps alone: structure, with numbers as wildcards; no second trace, no rewrite."""
    from torch._inductor.pattern_matcher import is_match

    found = 0
    for (op, target), entries in made.patterns.items():
        nodes = gm.graph.find_nodes(op=op, target=target)
        found += sum(is_match(e.pattern.match(n)) for n, e in itertools.product(nodes, entries))
    return found


def onnx_match(rule: Any, model: Any) -> int:
    return sum(bool(rule.match(model, model.graph, node)) for node in model.graph)


class Arms:
    """One layer at each level, with a matcher for it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layer, x = DecoderLayer().eval(), torch.randn(SHAPE)
        self.dynamo = dynamo_graph(layer, [x])[0]
        self.post_grad = post_grad_graph(layer, [x])[0]
        self.export = export_graph(layer, [x])[1]
        self.onnx = onnx_model(layer, [x])
        spec = fx_arm.Spec("early", torch.float32, False)
        self.matchers = {level: SubgraphMatcher(fx_arm.pattern_of(spec, level)) for level in ("dynamo", "export")}
        self.pass_of = lambda: inductor.build_pass([inductor.Spec("early", torch.float32, 3, False, 1e-6)])
        (self.rule,) = onnx.rules_of(("early",), biases=(False,), ranks=(3,))

    def nodes_of_a_layer(self) -> int:
        return len(self.dynamo.graph.nodes) - 1

    def calls(self, layers: int) -> dict[str, tuple[Any, Callable[[], Callable[[], int]]]]:
        """For each arm its graph, and what makes a fresh call (Inductor's changes the graph)."""
        dynamo = repeated(self.dynamo, layers, holder_of(self.dynamo, SHAPE))
        post_grad = repeated(self.post_grad, layers, holder_of(self.post_grad, SHAPE))
        export = repeated(self.export, layers, holder_of(self.export, SHAPE))
        model = repeated_onnx(self.onnx, layers)

        def apply() -> Callable[[], int]:
            copied, made = inductor.copy_of(post_grad), self.pass_of()
            return lambda: int(made.apply(copied.graph))

        search = self.pass_of()
        return {
            "fxfuse, Dynamo's graph": (dynamo.graph, lambda: lambda: ours(dynamo)),
            "fxfuse, post-grad graph": (post_grad.graph, lambda: lambda: ours(post_grad)),
            "Inductor, search only": (post_grad.graph, lambda: lambda: inductor_search(search, post_grad)),
            "Inductor, apply": (post_grad.graph, apply),
            "FX, Dynamo's graph": (dynamo.graph, lambda: lambda: fx_match(self.matchers["dynamo"], dynamo)),
            "FX, export graph": (export.graph, lambda: lambda: fx_match(self.matchers["export"], export)),
            "onnxscript": (model.graph, lambda: lambda: onnx_match(self.rule, model)),
        }


WITHOUT_COLLECTOR = "fxfuse, Dynamo's graph, gc off"


def measure_sizes(sizes: tuple[int, ...] = SIZES, *, repeats: int = 5, cap: float = 60.0) -> list[Sized]:
    """Every arm at every size, interleaved; an arm that was over the cap once is not tried on a longer graph."""
    arms = Arms()
    results: list[Sized] = []
    over: set[str] = set()
    for size in sizes:
        layers = max(1, round(size / arms.nodes_of_a_layer()))
        calls = arms.calls(layers)
        times = {name: Times() for name in (*calls, WITHOUT_COLLECTOR)}
        for name in over:
            times[name].over = cap
        for _ in range(repeats):
            for name, (_, fresh) in calls.items():
                if sum(times[name].wall) < cap:  # one long call is enough
                    measure(times[name], fresh(), cap=cap)
            measure(times[WITHOUT_COLLECTOR], calls["fxfuse, Dynamo's graph"][1](), cap=cap, collect=False)
        over |= {name for name, t in times.items() if t.over is not None}
        for name, t in times.items():
            graph = calls[name][0] if name in calls else calls["fxfuse, Dynamo's graph"][0]
            results.append(Sized(name, size, layers, count(graph), t))
    return results
