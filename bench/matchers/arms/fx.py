"""FX's ``SubgraphMatcher`` through ``replace_pattern_with_filters``, on Dynamo's graph and on export's."""

from __future__ import annotations

import io
import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.subgraph_rewriter import replace_pattern_with_filters
from torch.utils import _pytree as pytree

from bench.matchers.arms.arm import Outcome, by_block, judge
from bench.matchers.arms.inductor import copy_of
from bench.matchers.blocks import EPS, HIDDEN, INTER, NORMS, gated_mlp
from bench.matchers.captures import dynamo_graph, export_graph
from bench.matchers.perturbations import Case
from bench.matchers.reference import fused_op

CAPTURES = ("x", "weight", "gate", "up", "down", "gate_bias", "up_bias", "down_bias")


@dataclass(frozen=True)
class Spec:
    norm: str
    dtype: torch.dtype
    bias: bool


def specs_of(case: Case) -> list[Spec]:
    """A pattern for each dtype, cast and bias. Ranks make no difference here: shapes are not in the graph."""
    found = [Spec(*each) for each in itertools.product(case.norms, (torch.float32, torch.bfloat16), (False, True))]
    return [s for s in found if s.norm == case.norms[0] or s.dtype != torch.float32]


class Reference(nn.Module):
    """The pattern's function with its captures as inputs, to be captured as the model is."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.norm = NORMS[norm]

    def forward(self, x: Tensor, weight: Tensor, gate: Tensor, up: Tensor, down: Tensor, *biases: Tensor) -> Tensor:
        return gated_mlp(self.norm(x, weight, EPS), gate, up, down, *biases)


def pattern_of(spec: Spec, level: str) -> fx.Graph:
    """The pattern's graph, captured at the same level as the model's, with eps as a placeholder, which binds any."""
    shapes: list[tuple[int, ...]] = [(2, 5, HIDDEN), (HIDDEN,), (INTER, HIDDEN), (INTER, HIDDEN), (HIDDEN, INTER)]
    shapes += [(INTER,), (INTER,), (HIDDEN,)] if spec.bias else []
    inputs = [torch.randn(shape).to(spec.dtype) for shape in shapes]
    module = Reference(spec.norm)
    if level == "export":
        gm = export_graph(module, inputs)[1]
        names = CAPTURES[: len(inputs)]
    else:
        gm, examples = dynamo_graph(module, inputs)
        place = {id(tensor): name for tensor, name in zip(inputs, CAPTURES, strict=False)}
        names = tuple(place[id(example)] for example in examples)
    return with_open_eps(gm, names)


def with_open_eps(gm: fx.GraphModule, names: Sequence[str], eps: float = EPS) -> fx.Graph:
    """A captured graph as a pattern: one result, placeholders of these names, and one in the place of eps."""
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    holders = iter(names)
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            made[node] = graph.placeholder(next(holders))
        elif node.op == "output":
            graph.output(made[node.all_input_nodes[0]])
        else:
            made[node] = graph.node_copy(node, made.__getitem__)
    (add,) = [n for n in graph.nodes if eps in n.args]
    with graph.inserting_before(next(iter(graph.nodes))):
        placeholder = graph.placeholder("eps")
    add.args = tuple(placeholder if a == eps else a for a in add.args)
    return graph


def replacement_of(pattern: fx.Graph, spec: Spec) -> fx.Graph:
    """One call of the op, with the pattern's placeholders in the pattern's order."""
    graph = fx.Graph()
    given = {str(n.target): graph.placeholder(str(n.target)) for n in pattern.find_nodes(op="placeholder")}
    names = ("x", "weight", "eps", *CAPTURES[2:])
    graph.output(graph.call_function(fused_op(), (*(given.get(name) for name in names), spec.norm)))
    return graph


class Fx:
    """A pattern captured like the model, for each dtype, cast and bias."""

    def __init__(self, level: str) -> None:
        self.level = level
        self.name = f"FX, {level}"
        graph = "Dynamo's graph" if level == "dynamo" else "export's inference graph, its assertions erased"
        self.given = f"{graph}; patterns captured the same way, eps as a placeholder; one for each dtype, bias and cast"

    def run(self, case: Case) -> Outcome:
        model, inputs = case.model(), case.inputs()
        if self.level == "export":
            program, gm = export_graph(model, inputs, dynamic=case.dynamic)
            named = {**program.state_dict, **program.constants}
            targets = [spec.target for spec in program.graph_signature.input_specs]
            given = iter(inputs)
            arguments: Sequence[Any] = [named[t] if t is not None else next(given) for t in targets]
        else:
            gm, examples = dynamo_graph(model, inputs, dynamic=case.dynamic)
            arguments = [a.node.hint if isinstance(a, torch.SymInt) else a for a in examples]

        def run() -> list[list[Tensor]]:
            cloned = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
            return by_block(case, pytree.tree_leaves(fx.Interpreter(gm).run(*cloned)))

        before = run()
        specs = specs_of(case)
        patterns = [pattern_of(spec, self.level) for spec in specs]
        with logged(logging.INFO) as asked:
            self._replace(fx.GraphModule({}, copy_of(gm).graph), patterns[:1], specs)
        with logged(logging.WARNING) as said:
            sites = self._replace(gm, patterns, specs)
        outcome = Outcome(sites, said=said.getvalue(), asked=asked.getvalue(), patterns=len(specs))
        return judge(outcome, case, before, run)

    def _replace(self, gm: fx.GraphModule, patterns: Sequence[fx.Graph], specs: Sequence[Spec]) -> int:
        sites = 0
        for pattern, spec in zip(patterns, specs, strict=False):
            sites += len(replace_pattern_with_filters(gm, pattern, replacement_of(pattern, spec)))
        return sites


@contextmanager
def logged(level: int) -> Iterator[io.StringIO]:
    """What the matcher logs at this level (PYTORCH_MATCHER_LOGLEVEL)."""
    from torch.fx.passes.utils import matcher_utils

    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logger = matcher_utils.logger
    before, others = logger.level, list(logger.handlers)
    logger.setLevel(level)
    logger.handlers[:] = [handler]
    try:
        yield text
    finally:
        logger.setLevel(before)
        logger.handlers[:] = others
