"""The record says exactly what the rewriter did, costs little where nobody reads it, and keeps nothing alive."""

from __future__ import annotations

import gc
import time
import weakref
from typing import Any

import pytest
import torch
from end_to_end.tiny import Tiny, batch, compiled
from support import Net, capture, mlp, options, plain, rms, rows

import fxfuse
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


def share_of_recording(model: Any, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> float:
    """The part of fxfuse's own processor time that goes into captures, graphs and counts.

    The names of sites and the reasons of misses, which expectations and paths read as well, are not in it.
    """
    gm, examples = capture(model, x)
    spent = [0.0]

    def timed(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def run(*args: Any, **more: Any) -> Any:
            start = time.process_time()
            try:
                return original(*args, **more)
            finally:
                spent[0] += time.process_time() - start

        monkeypatch.setattr(owner, name, run)

    parsed = parse({})
    engine.fuse(gm, examples, parsed)
    for name in ("begin", "searched", "site", "take", "records", "totals"):
        timed(recording.Recorder, name)
    shares = []
    for _ in range(5):
        spent[0] = 0.0
        start = time.process_time()
        engine.fuse(gm, examples, parsed)
        shares.append(spent[0] / (time.process_time() - start))
    return min(shares)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["rewritten", "missed"])
def test_the_recorder_costs_under_two_percent(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Missed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(Net(lambda m, x: mlp(m, rms(m, x) + x)) for _ in range(12))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for part in self.parts:
                x = part(x)
            return x

    model, x = (Tiny(12), batch()) if kind == "rewritten" else (Missed(), rows())
    assert share_of_recording(model, x, monkeypatch) < 0.02


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
