"""Weights that changed are seen by the next call, wherever the fused weights live, and without a recompile."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from end_to_end.tiny import (
    EVERY_PLACEMENT,
    PLACEMENTS,
    Tiny,
    batch,
    close,
    compiled,
    count,
    graphs,
    placed,
    recorded,
)
from torch import Tensor, nn

import fxfuse
from fxfuse.params.share import groups_of


def in_place(model: Tiny) -> None:
    with torch.no_grad():
        model.layers[1].mlp.gate.weight.mul_(3)
        model.layers[0].mlp.up.weight[2] = 5.0


def through_data(model: Tiny) -> None:
    model.layers[0].mlp.gate.weight.data.mul_(-2)
    model.layers[1].mlp.up.weight.data += 0.3


def through_numpy(model: Tiny) -> None:
    model.layers[0].mlp.gate.weight.detach().numpy()[...] *= 2


def norm_and_down(model: Tiny) -> None:
    with torch.no_grad():
        model.layers[0].norm.weight.mul_(2)
        model.layers[1].mlp.down.weight.neg_()


def load_state_dict(model: Tiny) -> None:
    model.load_state_dict(Tiny().state_dict())


def load_by_assigning(model: Tiny) -> None:
    model.load_state_dict(Tiny().state_dict(), assign=True)


def data_swapped(model: Tiny) -> None:
    for layer in model.layers:
        layer.mlp.gate.weight.data = torch.randn_like(layer.mlp.gate.weight)


def new_parameter(model: Tiny) -> None:
    model.layers[0].mlp.up.weight = nn.Parameter(torch.randn_like(model.layers[0].mlp.up.weight))


def gate_and_up_exchanged(model: Tiny) -> None:
    mlp = model.layers[0].mlp
    mlp.gate.weight, mlp.up.weight = mlp.up.weight, mlp.gate.weight


def layers_exchanged(model: Tiny) -> None:
    first, second = (layer.mlp for layer in model.layers)
    first.gate.weight, second.gate.weight = second.gate.weight, first.gate.weight


def _step(model: Tiny, optimizer: torch.optim.Optimizer) -> None:
    with torch.enable_grad():
        for _ in range(2):
            optimizer.zero_grad()
            model(batch(seed=5)).square().mean().backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def sgd(model: Tiny) -> None:
    _step(model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9))


def fused_adamw(model: Tiny) -> None:
    _step(model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True))


def foreach_adamw(model: Tiny) -> None:
    _step(model, torch.optim.AdamW(model.parameters(), lr=0.1, foreach=True))


def there_and_back(model: Tiny) -> None:
    """Each `to` swaps the data of every parameter, and the addresses that the first one frees may be used again."""
    model.to(torch.bfloat16)
    model.layers[0].mlp.gate.weight.data.mul_(3)
    model.to(torch.float32)


def restored_and_edited(model: Tiny) -> None:
    fxfuse.restore(model)
    in_place(model)


EVENTS: list[Callable[[Tiny], None]] = [
    in_place, through_data, through_numpy, norm_and_down, load_state_dict, load_by_assigning, data_swapped,
    new_parameter, gate_and_up_exchanged, layers_exchanged, sgd, fused_adamw, foreach_adamw, there_and_back,
    restored_and_edited,
]  # fmt: skip


@EVERY_PLACEMENT
@pytest.mark.parametrize("event", EVENTS, ids=lambda e: e.__name__)
@torch.no_grad()
def test_the_next_call_sees(event: Callable[[Tiny], None], placement: str) -> None:
    model, x = Tiny(), batch()
    fast = compiled(model, placement)
    with recorded() as reports:
        close(fast(x), model(x))
    placed(model, placement, 2, reports)
    stale = model(x)
    for _ in range(2):
        event(model)
        expected = model(x)
        assert (expected - stale).abs().max() > 1e-4  # else nothing would be proven
        close(fast(x), expected)
        close(fast(x), expected)
        stale = expected
    assert graphs() == 1


@torch.no_grad()
def test_a_call_that_is_stale_would_be_noticed() -> None:
    """The negative twin: a graph with the weights baked in fails the comparison above."""
    model, x = Tiny(), batch()
    baked = copy.deepcopy(model)
    in_place(model)
    with pytest.raises(AssertionError):
        close(baked(x), model(x))


@EVERY_PLACEMENT
@torch.no_grad()
def test_another_dtype_is_one_more_graph_and_going_back_none(placement: str) -> None:
    model, x = Tiny(), batch()
    fast = compiled(model, placement)
    close(fast(x), model(x))
    model.to(torch.bfloat16)
    torch.testing.assert_close(fast(x.bfloat16()), model(x.bfloat16()), atol=3e-2, rtol=3e-2)
    assert graphs() == 2
    model.to(torch.float32)
    close(fast(x), model(x))
    assert graphs() == 2


@EVERY_PLACEMENT
@torch.no_grad()
def test_two_models_through_one_artifact(placement: str) -> None:
    first, second, x = Tiny(), Tiny(), batch()
    fast = compiled(lambda model, x: model(x), placement)
    for model in (first, second, first):
        close(fast(first, x), first(x))
        close(fast(second, x), second(x))
        in_place(model)
    close(fast(first, x), first(x))
    close(fast(second, x), second(x))
    assert graphs() == 1
    if placement == "share":
        assert len(groups_of(first)) == len(groups_of(second)) == 2
        assert not {id(g) for g in groups_of(first)} & {id(g) for g in groups_of(second)}


@EVERY_PLACEMENT
@torch.no_grad()
def test_one_artifact_serves_every_layer(placement: str) -> None:
    model, twin, x = Tiny(layers=3), Tiny(layers=3), batch()
    twin.load_state_dict(model.state_dict())
    backend = fxfuse.Backend(inner="eager", on_error="raise", **PLACEMENTS[placement])
    for layer in model.layers:
        layer.compile(backend=backend)
    with recorded() as reports:
        close(model(x), twin(x))
    assert count(reports) == len(reports) == graphs() == 1
    for each in (model, twin):
        each.layers[1].mlp.gate.weight.mul_(3)
    close(model(x), twin(x))
    for each in (model, twin):
        each.layers[2].mlp.up.weight.data = torch.ones_like(each.layers[2].mlp.up.weight)
    close(model(x), twin(x))
    assert graphs() == 1
    assert len(groups_of(model)) == (3 if placement == "share" else 0)


@EVERY_PLACEMENT
@torch.no_grad()
def test_a_deep_copy_goes_its_own_way(placement: str) -> None:
    model, x = Tiny(), batch()
    fast = compiled(model, placement)
    close(fast(x), model(x))
    twin = copy.deepcopy(model)
    fast_twin = copy.deepcopy(fast)
    in_place(model)
    load_state_dict(twin)
    close(fast(x), model(x))
    close(compiled(twin, placement)(x), twin(x))
    assert (twin(x) - model(x)).abs().max() > 1e-4
    in_place(fast_twin._orig_mod)
    close(fast_twin(x), fast_twin._orig_mod(x))
    close(fast(x), model(x))


Weights = Mapping[str, Tensor]


@EVERY_PLACEMENT
@torch.no_grad()
def test_functional_call_with_other_parameters(placement: str) -> None:
    model, other, x = Tiny(), Tiny(), batch()
    fast = compiled(model, placement)
    close(fast(x), model(x))
    weights = {f"_orig_mod.{name}": p for name, p in other.named_parameters()}
    close(torch.func.functional_call(fast, weights, (x,)), other(x))
    assert graphs() == 1
    in_place(other)
    close(torch.func.functional_call(fast, weights, (x,)), other(x))
    close(fast(x), model(x))  # the model's own are back
    assert graphs() == 1


@EVERY_PLACEMENT
@torch.no_grad()
def test_functional_call_with_plain_tensors(placement: str) -> None:
    model, other, x = Tiny(), Tiny(), batch()
    fast = compiled(model, placement)
    close(fast(x), model(x))
    weights = {f"_orig_mod.{name}": p.detach() for name, p in other.named_parameters()}
    close(torch.func.functional_call(fast, weights, (x,)), other(x))
    weights["_orig_mod.layers.0.mlp.up.weight"] = torch.ones(32, 16)
    other.layers[0].mlp.up.weight.fill_(1)
    close(torch.func.functional_call(fast, weights, (x,)), other(x))
    close(fast(x), model(x))


@EVERY_PLACEMENT
@torch.no_grad()
def test_functional_call_inside_the_compiled_function(placement: str) -> None:
    model, x = Tiny(), batch()

    def call(weights: Weights, x: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(weights), (x,))

    fast = compiled(call, placement, patterns=["rms_norm_gated_mlp"], on_miss="silent")
    for seed in range(2):
        torch.manual_seed(seed)
        weights = {name: torch.randn_like(p) for name, p in model.named_parameters()}
        close(fast(weights, x), call(weights, x), atol=1e-4)


@EVERY_PLACEMENT
def test_inductor_reads_live_weights_too(placement: str) -> None:
    """The one above all through Inductor, whose constants and static inputs are where a stale weight would hide."""
    model, x = Tiny(), batch()
    with torch.no_grad():
        fast = compiled(model, placement, inner="inductor")
        close(fast(x), model(x))
        for event in (in_place, data_swapped, load_by_assigning, gate_and_up_exchanged, fused_adamw):
            event(model)
            close(fast(x), model(x))
        other = Tiny()
        weights = {f"_orig_mod.{name}": p for name, p in other.named_parameters()}
        close(torch.func.functional_call(fast, weights, (x,)), other(x))
    assert graphs() == 1


@pytest.mark.parametrize(("granted", "weights"), [(0.0, "separate"), (0.5, "separate"), (1.0, "copy")])
@torch.no_grad()
def test_a_copy_only_within_the_memory_that_was_granted(granted: float, weights: str) -> None:
    model, x = Tiny(), batch()
    with recorded() as reports:
        close(compiled(model, weights="copy", extra_memory=granted)(x), model(x))
    (report,) = reports
    size = 2 * model.layers[0].mlp.gate.weight.nbytes
    assert {(s.weights, s.extra_bytes) for s in report.sites} == {(weights, size if weights == "copy" else 0)}
    refused = [note for s in report.sites for note in s.notes if note.startswith("weights are not placed by 'copy'")]
    assert len(refused) == (0 if weights == "copy" else len(report.sites))
    larger = {note.partition(":")[0] for s in report.sites for note in s.notes} - {"weights are not placed by 'copy'"}
    assert larger <= {"not cpu_kept_panels", "not stacked"}  # what was tried first, where the machine can run it
