"""Graphs as a serving engine makes them (vLLM's): a symbolic batch, weights as inputs, opaque ops in between, pieces.

The engine traces a model with Dynamo, splits the graph at its attention ops and compiles each piece with Inductor, with
passes of its own after autograd. What a parameter is, nothing tells a piece any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import fx
from torch.fx.passes.split_module import split_module

import fxfuse
from fxfuse import InductorPass
from fxfuse.compat import compile_fx
from tests.passes.nets import PATTERN, Net, assert_as_exact

HIDDEN = 8
ATTENTION = torch.ops.fxfuse_tests


@torch.library.custom_op("fxfuse_tests::attention", mutates_args=())
def attention(x: torch.Tensor) -> torch.Tensor:
    return torch.cumsum(x, 0) / 3


@attention.register_fake
def _(x):
    return torch.empty_like(x)


@torch.library.custom_op("fxfuse_tests::attention_out", mutates_args=("out",))
def attention_out(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(torch.cumsum(x, 0) / 3)


@attention_out.register_fake
def _(x, out):
    return None


def into_buffer(x: torch.Tensor) -> torch.Tensor:
    """The unified attention op of vLLM writes into a buffer that the graph allocates."""
    out = torch.empty_like(x)
    ATTENTION.attention_out(x, out)
    return x + out


def model(between: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype = torch.float32) -> Net:
    return Net(2, dtype, between)


def tokens(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A flat batch: [tokens, hidden]."""
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(count)).to(dtype)


def serve(
    model: Net, x: torch.Tensor, run: InductorPass, *, split: bool = False, hook: str = "post_grad_custom_pre_pass"
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Compile the model as such an engine does."""
    torch._dynamo.reset()
    patches = {hook: run, "fx_graph_cache": False}

    def backend(gm: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        if not split:
            return compile_fx(gm, examples, patches)
        parts: dict[fx.Node, int] = {}
        part = 0
        for node in gm.graph.nodes:
            if "attention" in str(node.target):
                parts[node] = part + 1
                part += 2
            else:
                parts[node] = part
        pieces = split_module(gm, gm, lambda node: parts[node], keep_original_order=True)
        return Pieces(pieces, patches).compile(examples)

    torch._dynamo.mark_dynamic(x, 0)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        compiled(x)
    return compiled


class Pieces(fx.Interpreter):
    """Compiles each piece that holds no attention, on the example values that reach it."""

    def __init__(self, gm: fx.GraphModule, patches: dict[str, Any]) -> None:
        super().__init__(gm)
        self.patches = patches

    def compile(self, examples: Sequence[Any]) -> Callable[..., Any]:
        holders = self.module.graph.find_nodes(op="placeholder")
        fakes = [n.meta["example_value"] for n in holders]
        mode = next(f.fake_mode for f in fakes if isinstance(f, torch.Tensor) and hasattr(f, "fake_mode"))
        with mode:
            self.run(*fakes)
        return self.module.forward

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        piece = self.module.get_submodule(target)
        out = piece(*args)
        if not any("attention" in str(n.target) for n in piece.graph.nodes):
            setattr(self.module, target, _Compiled(compile_fx(piece, list(args), self.patches)))
        return out


class _Compiled(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("between", [ATTENTION.attention, into_buffer], ids=["value", "buffer"])
def test_a_whole_graph_with_opaque_ops_between_the_sites(between, dtype):
    net, run = model(between, dtype), InductorPass(patterns=[PATTERN], kernels={PATTERN: "plain"}, on_error="raise")
    fast = serve(net, tokens(6, dtype), run)
    assert [dict(r.rewritten) for r in run.reports] == [{PATTERN: 2}]
    for count in (6, 3, 17):
        with torch.no_grad():
            assert_as_exact(fast(tokens(count, dtype)), net, tokens(count, dtype))
    assert len(run.reports) == 1


def test_pieces_between_attention():
    net = model(ATTENTION.attention)
    run = InductorPass(patterns=[PATTERN], kernels={PATTERN: "plain"}, on_error="raise")
    fast = serve(net, tokens(6), run, split=True)
    assert sum(r.rewritten[PATTERN] for r in run.reports) == 2
    for count in (6, 3, 17):
        with torch.no_grad():
            assert_as_exact(fast(tokens(count)), net, tokens(count))


def norm_read_by_attention(net: Net) -> Net:
    """The mutant: the attention op reads the norm's result, too."""
    block = net.blocks[0]
    inner = block.norm.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        h = inner(x)
        net.seen = ATTENTION.attention(h)
        return h

    block.norm.forward = forward  # type: ignore[method-assign]  # as an engine patches a model
    net.between = lambda x: x + net.seen
    return net


def test_an_opaque_op_that_reads_a_sites_inside_keeps_it():
    net = norm_read_by_attention(model(torch.relu))
    run = InductorPass(patterns=[PATTERN], kernels={PATTERN: "plain"}, on_error="raise")
    fast = serve(net, tokens(6), run)
    (report,) = run.reports
    assert report.rewritten == {PATTERN: 1}
    assert "EXTERNAL_USE" in {s.code for s in report.sites}
    with torch.no_grad():
        torch.testing.assert_close(fast(tokens(6)), net(tokens(6)), rtol=1e-5, atol=1e-5)


def test_after_inductors_own_fusions_a_residual_is_part_of_the_last_product_and_the_row_says_so():
    run = InductorPass(patterns=[PATTERN])
    serve(model(torch.relu), tokens(6), run, hook="post_grad_custom_post_pass")
    (report,) = run.reports
    assert {(s.outcome, s.code) for s in report.sites} == {("missed", "OP")}
    assert "found addmm" in report.sites[0].reason


def test_a_pass_manager_may_call_it_with_a_graph_of_its_own():
    """Beside Inductor: the same pass on an ATen graph that somebody captured."""
    net = model(torch.relu)
    program = torch.export.export(net, (tokens(6),)).run_decompositions()
    gm = program.module()
    run = InductorPass(patterns=[PATTERN], kernels={PATTERN: "plain"}, on_error="raise")
    run(gm.graph)
    gm.recompile()
    assert run.reports[0].rewritten == {PATTERN: 2}
    assert_as_exact(gm(tokens(6)), net, tokens(6))


def test_the_same_page_serves_every_stack():
    """One pattern, unchanged: Dynamo's graph, an exported program, and Inductor's graph after autograd."""
    net, x = model(torch.relu), tokens(6)
    counts = [fxfuse.explain(net, (x,), options={"patterns": [PATTERN]}).matched[PATTERN]]
    program = torch.export.export(net, (x,))
    for captured in (program.run_decompositions(), program):
        counts += [fxfuse.rewrite(captured, options={"patterns": [PATTERN]}).matched[PATTERN]]
    run = InductorPass(patterns=[PATTERN])
    serve(net, x, run)
    assert [*counts, run.reports[0].matched[PATTERN]] == [2, 2, 2, 2]
