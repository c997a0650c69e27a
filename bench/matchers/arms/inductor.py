"""Inductor's ``PatternMatcherPass`` with ``register_replacement``, on the graph of its post-grad passes."""

from __future__ import annotations

import io
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from bench.matchers.arms.arm import Outcome, by_block, judge
from bench.matchers.blocks import EPS, HIDDEN, INTER, NORMS, gated_mlp
from bench.matchers.captures import post_grad_graph
from bench.matchers.perturbations import Case
from bench.matchers.reference import fused_op

WILD_EPS = 0.113377
"""``scalar_workaround``: a literal of this value in the traced pattern binds whatever stands there."""


@dataclass(frozen=True)
class Spec:
    """One pattern: what its search function is traced with."""

    norm: str
    dtype: torch.dtype
    rank: int
    bias: bool
    eps: float | None
    """None: bound by ``scalar_workaround``."""


def specs_of(case: Case, *, every: bool) -> list[Spec]:
    """What a case's pattern is registered as: once, or once for each dtype, rank and bias too."""
    if not every:
        return [Spec(norm, case.pattern_dtype, case.given_rank, False, EPS) for norm in case.norms]
    dtypes = (torch.float32, torch.bfloat16)
    found = [Spec(*each, None) for each in itertools.product(case.norms, dtypes, (3, 2), (False, True))]
    # In fp32 early and late are one graph, and Inductor refuses the second.
    return [s for s in found if s.norm == case.norms[0] or s.dtype != torch.float32]


def build_pass(specs: Sequence[Spec]) -> Any:
    """A pass with these patterns registered."""
    from torch._inductor.pattern_matcher import PatternMatcherPass, register_replacement

    made = PatternMatcherPass(pass_name="fxfuse_bench")
    for spec in specs:
        workaround: dict[str, float | int] | None = {"eps": WILD_EPS} if spec.eps is None else None
        register_replacement(_search(spec), _replace(spec), _examples(spec), _trace, made, scalar_workaround=workaround)
    return made


def _trace(fn: Any, *args: Any, **more: Any) -> fx.GraphModule:
    """``fwd_only``, then what post-grad does first: a pattern with ``view`` would not find the graph's ``reshape``."""
    from torch._inductor.fx_passes.post_grad import view_to_reshape
    from torch._inductor.pattern_matcher import fwd_only

    gm = fwd_only(fn, *args, **more)
    view_to_reshape(gm)
    return gm


def _search(spec: Spec) -> Any:
    """A function with exactly the parameters that are captures: Inductor reads them from its signature."""
    norm = NORMS[spec.norm]
    if spec.bias and spec.eps is None:
        return lambda x, weight, gate, up, down, gate_bias, up_bias, down_bias, eps: gated_mlp(
            norm(x, weight, eps), gate, up, down, gate_bias, up_bias, down_bias
        )
    if spec.eps is None:
        return lambda x, weight, gate, up, down, eps: gated_mlp(norm(x, weight, eps), gate, up, down)
    return lambda x, weight, gate, up, down: gated_mlp(norm(x, weight, spec.eps), gate, up, down)


def _replace(spec: Spec) -> Any:
    op: Callable[..., Tensor] = fused_op()
    if spec.bias and spec.eps is None:
        return lambda x, weight, gate, up, down, gate_bias, up_bias, down_bias, eps: op(
            x, weight, eps, gate, up, down, gate_bias, up_bias, down_bias, spec.norm
        )
    if spec.eps is None:
        return lambda x, weight, gate, up, down, eps: op(x, weight, eps, gate, up, down, None, None, None, spec.norm)
    return lambda x, weight, gate, up, down: op(x, weight, spec.eps, gate, up, down, None, None, None, spec.norm)


def _examples(spec: Spec) -> list[Tensor]:
    shapes: list[tuple[int, ...]] = [(2, 5, HIDDEN) if spec.rank == 3 else (10, HIDDEN), (HIDDEN,)]
    shapes += [(INTER, HIDDEN), (INTER, HIDDEN), (HIDDEN, INTER)]
    if spec.bias:
        shapes += [(INTER,), (INTER,), (HIDDEN,)]
    return [torch.randn(shape).to(spec.dtype) for shape in shapes]


class Inductor:
    """One registration as a person would write it, or one for each variant, with eps as ``scalar_workaround``."""

    def __init__(self, *, every: bool) -> None:
        self.every = every
        self.name = "Inductor, best" if every else "Inductor, one"
        self.given = "post-grad graph; register_replacement, fwd_only and view_to_reshape; " + (
            "scalar_workaround for eps; one registration for each dtype, rank, bias and cast"
            if every
            else "one registration for each cast, traced with the examples that the row names"
        )

    def run(self, case: Case) -> Outcome:
        gm, arguments = post_grad_graph(case.model(), case.inputs(), dynamic=case.dynamic)

        def run() -> list[list[Tensor]]:
            cloned = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
            return by_block(case, pytree.tree_leaves(fx.Interpreter(gm).run(*cloned)))

        before = run()
        specs = specs_of(case, every=self.every)
        copied = copy_of(gm)
        with logged() as said:
            sites = build_pass(specs).apply(gm.graph)
        with logged() as asked, debugging():
            build_pass(specs).apply(copied.graph)
        outcome = Outcome(sites, said=said.getvalue(), asked=asked.getvalue(), patterns=len(specs))
        return judge(outcome, case, before, run)


def copy_of(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy with the nodes' metadata; the tensors are shared."""
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        made[node] = graph.node_copy(node, made.__getitem__)
    return fx.GraphModule(gm, graph)


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """What Inductor logs at the level that a user sees, WARNING."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setLevel(logging.WARNING)
    logger = logging.getLogger("torch._inductor")
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    others = [h for h in logger.handlers if h is not handler]
    for other in others:
        logger.removeHandler(other)
    try:
        yield text
    finally:
        logger.removeHandler(handler)
        for other in others:
            logger.addHandler(other)
        logger.propagate = propagate


@contextmanager
def debugging() -> Iterator[None]:
    os.environ["TORCHINDUCTOR_PATTERN_MATCH_DEBUG"] = "all"
    try:
        yield
    finally:
        del os.environ["TORCHINDUCTOR_PATTERN_MATCH_DEBUG"]
