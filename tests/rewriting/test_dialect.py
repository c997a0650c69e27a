"""A graph's dialect is told from its calls."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxfuse.rewriting import Dialect, dialect_of
from tests.support import capture


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.inner(x)).to(torch.bfloat16)[0]


def inside_inductor(hook: str) -> Dialect:
    seen: list[Dialect] = []
    torch._dynamo.reset()
    options = {hook: lambda graph: seen.append(dialect_of(graph)), "fx_graph_cache": False}
    with torch.no_grad():
        torch.compile(Small(), options=options)(torch.randn(4, 6))
    (dialect,) = seen
    return dialect


def test_dynamo_graphs_are_of_torch():
    gm, _ = capture(Small(), torch.randn(4, 6))
    assert dialect_of(gm.graph) is Dialect.TORCH


def test_a_dynamo_graph_of_overloads_alone_is_of_torch():
    gm, _ = capture(lambda x: torch.ops.aten.tanh.default(x), torch.randn(4))
    assert dialect_of(gm.graph) is Dialect.TORCH


def test_symbolic_trace_is_of_torch():
    assert dialect_of(torch.fx.symbolic_trace(lambda x: torch.tanh(x) + x).graph) is Dialect.TORCH


def test_a_graph_without_calls_is_of_torch():
    assert dialect_of(torch.fx.symbolic_trace(lambda x: x).graph) is Dialect.TORCH


def test_exported_graphs():
    program = torch.export.export(Small(), (torch.randn(4, 6),))
    assert dialect_of(program.graph) is Dialect.EXPORT
    assert dialect_of(program.module().graph) is Dialect.EXPORT
    assert dialect_of(program.run_decompositions().graph) is Dialect.CORE


@pytest.mark.parametrize(
    ("hook", "dialect"),
    [("pre_grad_custom_pass", Dialect.TORCH), ("post_grad_custom_post_pass", Dialect.INDUCTOR)],
)
def test_inductor_graphs(hook, dialect):
    assert inside_inductor(hook) is dialect
