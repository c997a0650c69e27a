"""Small stretches that occur once run as they are written, and give what eager gives; larger ones are compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reuse.stacks import HIDDEN, Stack, compiled, last, rms, rows
from torch import Tensor, nn

import fxfuse
from fxfuse import compat

LAYERS = 7


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Inductor was given to compile; AOTAutograd alone does it."""
    given: list[Any] = []

    def aot(gm: Any, examples: Any, patches: Any) -> Any:
        given.append(gm)
        return torch._dynamo.lookup_backend("aot_eager")(gm, list(examples))

    monkeypatch.setattr(compat, "compile_fx", aot)
    return given


class Headed(Stack):
    """Something small in front of the layers, of which a second result may go around them."""

    def __init__(self, head: Callable[..., Any], layers: int = LAYERS) -> None:
        super().__init__(layers)
        self.head = head
        self.scale = nn.Parameter(torch.full((HIDDEN,), 1.5))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        made = self.head(self, x)
        x, *others = made if isinstance(made, tuple) else (made,)
        y = super().forward(x)
        return (y, *others) if others else y


def scaled(model: Headed, x: Tensor) -> Tensor:
    return torch.tanh(x) * model.scale


def dropped(model: Headed, x: Tensor) -> Tensor:
    return F.dropout(torch.tanh(x), 0.5, True) * model.scale


def counted(model: Headed, x: Tensor) -> Tensor:
    model.calls.add_(1.0)
    return x.clone().mul_(torch.sigmoid(model.calls))


def viewed(model: Headed, x: Tensor) -> tuple[Tensor, ...]:
    y = torch.tanh(x)
    return y, x, x[0], y.transpose(0, 1), model.calls.detach()


def detached(model: Headed, x: Tensor) -> Tensor:
    with torch.no_grad():
        norm = x.abs().amax()
    return x / norm * model.scale


def own_autocast(model: Headed, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = x @ x.transpose(-1, -2)
    return x + y.float().mean(-1, keepdim=True)


def check(model: nn.Module, *, grad: bool, given: Callable[[], Tensor] = rows, calls: int = 2, **options: Any) -> None:
    other = copy.deepcopy(model)
    fast = compiled(other, "inductor", **options)
    for call in range(calls):
        outcomes = []
        for run, owner in ((model, model), (fast, other)):
            owner.zero_grad()
            torch.manual_seed(call)
            x = given().requires_grad_(grad)
            with torch.set_grad_enabled(grad):
                results = run(x)
            results = results if isinstance(results, tuple) else (results,)
            if grad:
                sum(r.float().square().mean() for r in results if r.requires_grad).backward()
            outcomes.append((results, [p.grad for p in (x, *owner.parameters())], list(owner.buffers())))
        torch.testing.assert_close(outcomes[1], outcomes[0], atol=1e-6, rtol=1e-5)
        assert [r.requires_grad for r in outcomes[1][0]] == [r.requires_grad for r in outcomes[0][0]]
        assert [r.stride() for r in outcomes[1][0]] == [r.stride() for r in outcomes[0][0]]


def written() -> list[int]:
    """The operations of each stretch that runs as written."""
    return [region.nodes for region in last().regions if region.as_written]


@pytest.mark.parametrize(
    ("head", "grad"),
    [(scaled, True), (dropped, True), (counted, False), (viewed, True), (detached, True), (own_autocast, False)],
)
def test_results_are_those_of_eager(head: Any, grad: bool, graphs: list[Any]) -> None:
    check(Headed(head), grad=grad)
    assert written(), last()
    assert len(graphs) == len(last().regions) - len(written())


def test_autocast_around_the_call() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check(Headed(lambda _, x: torch.tanh(x) @ x.transpose(-1, -2) @ x).requires_grad_(False), grad=False)
    assert written()


def _values(gm: Any) -> list[Any]:
    return [node.meta.get("example_value") for node in gm.graph.find_nodes(op="placeholder")]


def test_sizes_that_change_from_call_to_call(graphs: list[Any]) -> None:
    model = Headed(scaled).requires_grad_(False)
    fast = compiled(model, "inductor")
    for count in (6, 9):
        x = rows(count)
        torch._dynamo.mark_dynamic(x, 1)
        torch.testing.assert_close(fast(x), model(x), atol=1e-6, rtol=1e-5)
    assert any(isinstance(read, torch.SymInt) for gm in graphs for read in _values(gm))
    assert written()


def test_it_is_said(graphs: list[Any]) -> None:
    model = Headed(scaled).requires_grad_(False)
    report = fxfuse.explain(model, (rows(),))
    assert not graphs  # nothing is compiled
    (line,) = (line for line in str(report).splitlines() if "run as written" in line)
    assert "% of the operations" in line
    assert "% of the bytes" in line
    assert fxfuse.Report.from_json(report.to_json()).reuse == report.reuse


def test_only_inductor_is_spared() -> None:
    compiled(Headed(scaled).requires_grad_(False), "aot_eager")(rows())
    assert last().repeated
    assert not written()


def many(model: Headed, x: Tensor) -> Tensor:
    for _ in range(20):
        x = torch.tanh(x)
    return x


def large(model: Headed, x: Tensor) -> Tensor:
    return x + torch.tanh(x.repeat(1, 1, 400)).sum(-1, keepdim=True)


@pytest.mark.parametrize("head", [many, large])
def test_what_weighs_something_is_compiled(head: Any) -> None:
    compiled(Headed(head).requires_grad_(False), "inductor")(rows())
    assert last().repeated
    assert not written()


@pytest.mark.parametrize("patterns", [["rms_norm"], []])
def test_a_rewritten_site_is_compiled(patterns: list[str]) -> None:
    model = Headed(lambda m, x: rms(torch.tanh(x), m.scale), 10).requires_grad_(False)
    check(model, grad=False, patterns=patterns)
    assert bool(written()) == (not patterns)


def test_no_fake_tensor_is_kept(graphs: list[Any]) -> None:
    made: list[Any] = []
    from fxfuse.reuse import running

    real = running.outline
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "outline", lambda *args: made.append(real(*args)) or made[-1])
        compiled(Headed(scaled).requires_grad_(False), "inductor")(rows())
    (kept,) = [gm for gm in made if all(gm is not given for given in graphs)]
    assert not any(node.meta for node in kept.graph.nodes)
