"""`explain`: what it takes, what it leaves as it was, and that it never answers with an empty report in silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from end_to_end.tiny import PATTERN, Tiny, batch, close, compiled, count, graphs, recorded
from torch import Tensor, nn

import fxfuse
from fxfuse.params.share import groups_of


def test_no_graph_is_an_error() -> None:
    def nothing(x: Tensor) -> int:
        return 3

    @torch.compiler.disable
    def disabled(x: Tensor) -> Tensor:
        return x + 1

    def only_disabled(x: Tensor) -> Tensor:
        return disabled(x)

    for function in (nothing, only_disabled):
        with pytest.raises(fxfuse.CaptureError, match="captured no graph"):
            fxfuse.explain(function, (torch.ones(1),))
    assert fxfuse.explain(lambda x: x + 1, (torch.ones(1),)).graphs == 1


@torch.no_grad()
def test_it_works_past_dynamos_recompile_limit() -> None:
    model, x = Tiny(layers=1), batch()
    limit = torch._dynamo.config.recompile_limit
    for number in range(limit + 2):
        close(torch.compile(model, backend=fxfuse.Backend(inner="eager", extra_memory=float(number)))(x), model(x))
    assert graphs() == limit  # the rest ran eager
    report = fxfuse.explain(model, (x,))
    assert report.rewritten[PATTERN] == 1
    for _ in range(limit + 2):
        assert fxfuse.explain(model, (x,)).rewritten[PATTERN] == 1


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tiny = Tiny(layers=1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.tiny(x)) + torch.randn_like(x)


def test_it_leaves_random_state_parameters_and_gradients() -> None:
    model, x = Random().train(), batch()
    state = torch.get_rng_state()
    addresses = [p.data_ptr() for p in model.parameters()]
    versions = [p._version for p in model.parameters()]
    report = fxfuse.explain(model, (x,), options={"weights": "share"})
    assert report.rewritten[PATTERN] == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert [p._version for p in model.parameters()] == versions
    assert all(p.grad is None for p in model.parameters())
    assert groups_of(model) == ()
    assert model.training


@torch.no_grad()
def test_it_makes_no_report_of_a_compile() -> None:
    with recorded() as reports:
        fxfuse.explain(Tiny(), (batch(),))
    assert reports == []


@torch.no_grad()
def test_models_that_are_compiled_already() -> None:
    model, x = Tiny(), batch()
    fast = compiled(model)
    in_place = Tiny()
    in_place.compile(backend="fxfuse", options={"inner": "eager", "kernels": {PATTERN: "off"}})
    parts = Tiny()
    for layer in parts.layers:
        layer.compile(backend="fxfuse", options={"inner": "eager", "kernels": {PATTERN: "off"}})
    paths = [("layers.0.norm", "layers.0.mlp"), ("layers.1.norm", "layers.1.mlp")]
    for call in (False, True):  # before they were called, and after
        for each in (fast, in_place, parts):
            report = fxfuse.explain(each, (x,))
            assert [(s.modules, s.outcome) for s in report.sites] == [(p, "rewritten") for p in paths]
        if not call:
            for each in (fast, in_place, parts):
                each(x)
    with recorded() as reports:
        torch._dynamo.reset()
        in_place(x)
    assert count(reports, "kept") == 2  # still compiled, with its own options


@torch.no_grad()
def test_functions_and_bound_methods() -> None:
    model, x = Tiny(), batch()

    def function(x: Tensor, *, scale: float = 1.0) -> Tensor:
        return model(x) * scale

    for callable_ in (function, model.forward, torch.compile(function, backend="eager"), lambda x: model(x)):
        report = fxfuse.explain(callable_, (x,))
        assert report.rewritten[PATTERN] == 2
        assert report.graphs == 1
    assert fxfuse.explain(function, (), {"x": x, "scale": 2.0}).rewritten[PATTERN] == 2
    assert fxfuse.explain(function, [x]).rewritten[PATTERN] == 2


@pytest.mark.parametrize("args", [torch.ones(1), 3, {"x": torch.ones(1)}, None])
def test_args_that_are_no_sequence(args: Any) -> None:
    with pytest.raises(TypeError, match="tuple of positional arguments"):
        fxfuse.explain(Tiny(), args)


def test_the_models_own_error_is_raised_as_it_is() -> None:
    def fails(x: Tensor) -> Tensor:
        if x.shape[0] == 1:
            raise KeyError("a user's error")
        return x

    with pytest.raises(KeyError, match="a user's error"):
        fxfuse.explain(fails, (torch.ones(1),))
    with pytest.raises(TypeError):
        fxfuse.explain(Tiny(), (batch(), batch(), batch()))


def test_a_failure_of_the_engine_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("the engine stumbled")

    monkeypatch.setattr("fxfuse.capture.fuse", broken)
    with pytest.raises(ZeroDivisionError, match="the engine stumbled"):
        fxfuse.explain(Tiny(), (batch(),))


@torch.no_grad()
def test_the_same_call_compiles_to_what_was_explained() -> None:
    model, x = Tiny(), batch()
    for options in ({}, {"weights": "share"}, {"weights": "inline"}, {"paths": ["layers.1"]}):
        explained = fxfuse.explain(model, (x,), options=options)
        with recorded() as reports:
            torch.compile(model, backend="fxfuse", options={"inner": "eager", **options})(x)
        rows = [[(s.modules, s.outcome, s.kernel, s.weights) for s in r.sites] for r in (explained, *reports)]
        assert len(rows) == 2
        assert rows[0] == rows[1]
        fxfuse.restore(model)


def test_explain_in_grad_mode_explains_the_call_in_grad_mode() -> None:
    model, x = Tiny(layers=1), batch()
    assert [s.weights for s in fxfuse.explain(model, (x,), options={"weights": "share"}).sites] == ["separate"]
    with torch.no_grad():
        assert [s.weights for s in fxfuse.explain(model, (x,), options={"weights": "share"}).sites] == ["share"]
