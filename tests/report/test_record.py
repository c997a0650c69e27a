"""The record says exactly what the rewriter did, costs little where nobody reads it, and keeps nothing alive."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import Any

import pytest
import torch
from end_to_end.tiny import Tiny, batch, compiled
from support import Net, capture, mlp, options, plain, rms, rows

import fxfuse
from bench.debugging_cost import shares
from fxfuse import engine, recording
from fxfuse.options import parse
from fxfuse.program import code_of
from fxfuse.program import plain as operand


@pytest.fixture(scope="module")
def report() -> fxfuse.Report:
    with torch.no_grad():
        return fxfuse.explain(Tiny(), (batch(),))


def test_the_mapping_is_the_rewriters(report: fxfuse.Report) -> None:
    (graph,) = report.captured
    before, after = {n.name for n in graph.before}, {n.name for n in graph.after}
    assert graph.whole
    assert before - after == {n for s in report.sites for n in s.erased}
    assert after - before == {n for s in report.sites for n in s.new_nodes}
    assert len(graph.before) == report.nodes


def test_captures_have_paths_types_and_numbers(report: fxfuse.Report) -> None:
    found = {c.name: c for c in report.sites[1].captures}
    assert (found["gate"].kind, found["gate"].path, found["gate"].type) == (
        "parameter", "layers.1.mlp.gate.weight", "f32[32, 16]",
    )  # fmt: skip
    assert (found["eps"].kind, found["eps"].value) == ("number", "1e-06")
    assert found["gate_bias"].kind == "absent"
    assert (found["x"].kind, found["x"].type) == ("computed", "f32[2, 5, 16]")
    assert report.sites[0].device == "cpu"
    assert report.sites[0].pattern_line.startswith("patterns/rms_norm_gated_mlp.py:")


def test_canonical_steps_have_their_nodes(report: fxfuse.Report) -> None:
    (square,) = [c for c in report.sites[0].canonical if c.op == "square"]
    assert square.steps == ("pow(x, 2) = square(x)",)
    assert square.node.startswith("pow")


def test_what_the_search_did_is_counted(report: fxfuse.Report) -> None:
    (one,) = [p for p in report.patterns if p.name == "rms_norm_gated_mlp"]
    assert (one.tried, one.matched, one.rewritten) == (2, 2, 2)
    assert one.ms > 0
    assert one.source is not None
    assert one.source.lines[0] == '@pattern("rms_norm_gated_mlp")'


def test_lines_of_the_model_come_along(report: fxfuse.Report) -> None:
    texts = [line for s in report.captured[0].sources if s.file == "tiny.py" for line in s.lines]
    assert any("F.silu(self.gate(x)) * self.up(x)" in line for line in texts)


def test_a_compile_that_nobody_asked_about_keeps_one_site_of_a_kind() -> None:
    with torch.no_grad():
        compiled(Tiny(4))(batch())
    found = fxfuse.reports()[-1]
    (graph,) = found.captured
    assert not graph.whole
    names = {n.name for n in graph.before}
    assert [names.issuperset(s.nodes) for s in found.sites] == [True, False, False, False]
    assert all(s.captures for s in found.sites), "what is small is kept of all"
    assert set(found.sites[3].erased).issuperset(set(found.sites[3].nodes) & set(found.sites[3].erased))
    assert found.sites[3].erased


def test_several_graphs_and_bodies_are_told_apart() -> None:
    def broken(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = plain(m, x)
        torch._dynamo.graph_break()
        return plain(m, y)

    found = fxfuse.explain(Net(broken), (rows(),), options=options())
    assert {g.number for g in found.captured} == {s.graph for s in found.sites} == {0, 1}


def test_nothing_of_the_model_stays_alive() -> None:
    model, x = Tiny(1), batch()
    with torch.no_grad():
        compiled(model)(x)
        found = fxfuse.explain(model, (x,))
    watched = [weakref.ref(p) for p in model.parameters()]
    torch._dynamo.reset()
    del model
    gc.collect()
    assert all(ref() is None for ref in watched)
    assert found.captured[0].before, "and it can still be read"


class Missed(torch.nn.Module):
    """Nothing but near misses."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(Net(lambda m, x: mlp(m, rms(m, x) + x)) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = part(x)
        return x


@torch.no_grad()
@pytest.mark.parametrize("kind", ["rewritten", "missed"])
def test_what_is_read_late_is_what_was(kind: str) -> None:
    model, x = (Tiny(2), batch()) if kind == "rewritten" else (Missed(2), rows())
    gm, examples = capture(model, x)
    at_once = engine.fuse(gm, examples, parse({})).report
    wanted = [dataclasses.asdict(site) for site in at_once.sites]
    assert wanted
    late = engine.fuse(gm, examples, parse({})).report
    kinds = late.kinds
    for node in reversed(gm.graph.nodes):
        node._rename(f"other_{node.name}")
        node.meta.clear()
        if not node.users and node.op != "output":
            gm.graph.erase_node(node)
    graph = weakref.ref(gm.graph)
    del gm, examples, model, node
    torch._dynamo.reset()
    gc.collect()
    assert graph() is None, "a report that nobody has read keeps no graph"
    assert [dataclasses.asdict(site) for site in late.sites] == wanted
    assert kinds == [(s.pattern, s.outcome) for s in late.sites]


@torch.no_grad()
def test_a_line_of_megabytes_stays_small() -> None:
    gm, examples = capture(Missed(2), rows())
    for node in gm.graph.nodes:
        node.meta["stack_trace"] = f'  File "/model.py", line 3, in f\n    x = {"<y>" * 1_000_000}'
    found = engine.fuse(gm, examples, parse({}), record=True).report
    assert found.sites[0].detail is not None
    assert found.sites[0].detail.graph_line == "model.py:3"
    assert len(found.to_html()) + len(found.to_json()) + len(str(found)) < 300_000


class Forwarding(torch.nn.Module):
    """As peft's: what it lacks is the wrapped model's, so that Dynamo goes through ``__dict__``."""

    def __init__(self, base: torch.nn.Module) -> None:
        super().__init__()
        self.base = base

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.base(x)
        return found


@torch.no_grad()
def test_paths_are_those_of_the_model_behind_a_getattr() -> None:
    model = Forwarding(Forwarding(Tiny(1)))
    found = fxfuse.explain(model, (batch(),), options={"paths": "base.base.layers.0.*"})
    (site,) = found.sites
    assert site.outcome == "rewritten"
    assert set(site.modules) == {"base.base.layers.0.norm", "base.base.layers.0.mlp"}
    assert {c.path for c in site.captures if c.kind == "parameter"} <= {name for name, _ in model.named_parameters()}
    names = {path for path, _ in model.named_modules()}
    assert {n.module for n in found.captured[0].before} <= names


@torch.no_grad()
@pytest.mark.parametrize(("kind", "most"), [("rewritten", 0.05), ("missed", 0.10)])
def test_what_nobody_reads_costs_next_to_nothing(kind: str, most: float) -> None:
    """Of graphs that are nothing but sites; of a whole model it is under 2 % (``python -m bench.debugging_cost``)."""
    model, x = (Tiny(6), batch()) if kind == "rewritten" else (Missed(6), rows())
    found, _ = shares(*capture(model, x), runs=4)
    assert min(found) < most


@pytest.mark.parametrize(
    ("function", "code"),
    [
        (lambda x: x * 2, "x * 2"),
        (lambda x: x.pow(2), "x.pow(2)"),
        (lambda x: torch.rsqrt(x), "torch.rsqrt(x)"),
        (lambda x: torch.nn.functional.silu(x), "F.silu(x)"),
        (lambda x: x[..., 1:], "x[..., 1:]"),
        (lambda x: x[:, None], "x[:, None]"),
        (lambda x: -x, "-x"),
        (lambda x: x.to(torch.float64), "x.to(torch.float64)"),
        (lambda x: x.mean(-1, keepdim=True), "x.mean(-1, keepdim=True)"),
        (lambda x: torch.cat([x, x], dim=-1), "torch.cat([x, x], dim=-1)"),
        (lambda x: x - -1.5, "x - (-1.5)"),
    ],
)
def test_nodes_read_as_python(function: Any, code: str) -> None:
    gm, _ = capture(function, torch.ones(2, 3))
    (node,) = [n for n in gm.graph.nodes if n.op.startswith("call_")]
    text = code_of(node.op, recording.target_name(node.target) if callable(node.target) else node.target,
                   operand(node.args), operand(node.kwargs))  # fmt: skip
    assert text.replace("l_x_", "x") == code
