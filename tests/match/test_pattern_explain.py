"""`Pattern.explain`: one pattern asked about a graph, a node of it or a module in it; the rows are a compile's."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from end_to_end.tiny import Tiny, batch
from match import example_models as models
from support import PATTERN, Net, capture, options, rows
from torch import fx

import fxfuse
from fxfuse.library import lookup

HEADLINE: Any = lookup(PATTERN, "patterns")


def graph(body: Any) -> fx.GraphModule:
    torch._dynamo.reset()
    gm, _ = capture(Net(body), rows())
    return gm


def text(report: Any) -> list[str]:
    lines = [line for line in str(report).splitlines() if not line.startswith("time: ")]
    return re.sub(r" \(\d+\.\d+ s\)", "", re.sub(r"(\.py):\d+", r"\1:#", "\n".join(lines).strip())).splitlines()


def test_a_match() -> None:
    report = HEADLINE.explain(graph(models.site))
    assert text(report) == [
        "fxfuse: matched 1 rms_norm_gated_mlp in 1 graph of 19 nodes",
        "",
        "rms_norm_gated_mlp: 1 matched",
        "  x1 (top level)  norm=early proj=separate act=silu",
    ]
    assert report.matched == {PATTERN: 1}
    assert not report.rewritten
    assert fxfuse.Report.from_json(report.to_json()) == report


def test_a_near_miss_has_the_rows_of_a_compile() -> None:
    report = HEADLINE.explain(graph(models.routed))
    assert report.summary().startswith("fxfuse: matched nothing in 1 graph of 21 nodes; 1 missed")
    torch._dynamo.reset()
    compiled = fxfuse.explain(Net(models.routed), (rows(),), options=options())
    assert text(report)[2:] == text(compiled)[2:]


@pytest.fixture(scope="module")
def tiny() -> fx.GraphModule:
    torch._dynamo.reset()
    gm, _ = capture(Tiny(layers=2), batch())
    return gm


@pytest.mark.parametrize(
    ("at", "first"),
    [
        ("layers.1.mlp", "  x1 layers.1.norm + layers.1.mlp  norm=early proj=separate act=silu"),
        ("layers", "  x2 layers.{0-1}.norm + layers.{0-1}.mlp  norm=early proj=separate act=silu"),
        ("silu", "  x1 layers.0.norm + layers.0.mlp  norm=early proj=separate act=silu"),
        ("norm", "  x1 norm  6 of 11 nodes matched, norm=early"),
    ],
)
def test_at_a_place(tiny: fx.GraphModule, at: str, first: str) -> None:
    assert text(HEADLINE.explain(tiny, at=at))[3] == first


def test_at_a_node(tiny: fx.GraphModule) -> None:
    (node,) = (n for n in tiny.graph.nodes if n.name == "silu_1")
    assert text(HEADLINE.explain(tiny, at=node)) == text(HEADLINE.explain(tiny, at="silu_1"))


def test_at_a_place_that_is_nothing_of_the_pattern() -> None:
    gm = graph(lambda m, x: models.site(m, x).sin())
    (site,) = HEADLINE.explain(gm, at="sin").sites
    assert (site.outcome, site.code, site.reason) == (
        "missed",
        "OP",
        "expected an operation of the pattern, found sin (sin)",
    )


def test_an_unknown_place_raises_and_names_near_ones(tiny: fx.GraphModule) -> None:
    with pytest.raises(
        fxfuse.OptionError,
        match=r"at='layers\.1\.nrom' is neither a node nor a module of this graph; nearest: 'layers\.1\.norm'",
    ):
        HEADLINE.explain(tiny, at="layers.1.nrom")
    with pytest.raises(ValueError, match=r"at='zzz' is neither a node nor a module of this graph\.$"):
        HEADLINE.explain(tiny, at="zzz")


def test_a_node_of_another_graph_raises(tiny: fx.GraphModule) -> None:
    other = next(iter(graph(models.site).graph.nodes))
    with pytest.raises(fxfuse.OptionError, match="is a node of another graph"):
        HEADLINE.explain(tiny, at=other)


def test_an_exported_program() -> None:
    program = torch.export.export(Tiny(layers=2), (batch(),))
    assert HEADLINE.explain(program).matched == {PATTERN: 2}


D, N = fxfuse.Dim("hidden"), fxfuse.Dim("intermediate")


def squares(x: Any = fxfuse.Input(..., D), up: Any = fxfuse.Param(N, D), down: Any = fxfuse.Param(D, N)) -> Any:
    return F.linear(F.relu(F.linear(x, up)).square(), down)


class Leaky(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 16, bias=False), torch.nn.Linear(16, 8, bias=False)

    def forward(self, x: Any) -> Any:
        return self.down(F.leaky_relu(self.up(x)).square())


def test_where_nothing_is_near_the_least_far_place_is_shown() -> None:
    """One pattern was asked about, so nothing is no answer. Here nothing has the op that a search starts from."""
    asked = fxfuse.pattern("squares")(squares)
    torch._dynamo.reset()
    gm, _ = capture(Leaky(), torch.randn(3, 8))
    report = asked.explain(gm)
    (site,) = report.sites
    assert (site.outcome, site.code) == ("missed", "OP")
    assert "expected relu, found leaky_relu" in str(report)
    assert asked.explain(fx.symbolic_trace(lambda x: x + 1)).sites == ()
