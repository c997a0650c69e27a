"""Training: gradients are eager's, whatever the placement, and a placement that cannot give them is not used."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from end_to_end.tiny import PATTERN, Tiny, batch, close, compiled, count, graphs, recorded
from torch import Tensor

import fxfuse
from fxfuse.params.share import groups_of

UNDER_GRAD = pytest.mark.parametrize("placement", ["separate", "inline"])
INNER = pytest.mark.parametrize("inner", ["eager", "aot_eager"])


def gradients(model: Any, call: Any, x: Tensor, weight: Tensor | None = None) -> dict[str, Tensor | None]:
    """The gradients of one backward pass through ``call``, of all parameters and of the input."""
    model.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_(True)
    out = call(x)
    (out * (torch.linspace(-1, 1, out.numel()).view_as(out) if weight is None else weight)).sum().backward()
    found = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    return {**found, "input": x.grad, "output": out.detach()}


def assert_same(found: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    assert list(found) == list(expected)
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None, name
        else:
            assert found[name] is not None, name
            close(found[name], gradient)


@INNER
@UNDER_GRAD
def test_gradients_are_eagers(placement: str, inner: str) -> None:
    model, x = Tiny(), batch()
    fast = compiled(model, placement, inner=inner)
    with recorded() as reports:
        found = gradients(model, fast, x)
    assert [s.weights for r in reports for s in r.sites] == [placement] * 2
    expected = gradients(model, model, x)
    assert all(g is not None for g in expected.values())
    assert_same(found, expected)


@pytest.mark.parametrize("placement", ["inline", "share"])
def test_gradients_through_inductor(placement: str) -> None:
    model, x = Tiny(layers=1), batch()
    fast = compiled(model, placement, inner="inductor")
    with recorded() as reports:
        found = gradients(model, fast, x)
    assert count(reports) == 1
    assert_same(found, gradients(model, model, x))


@pytest.mark.parametrize("placement", ["share", "copy"])
def test_a_placement_that_takes_gradients_away_is_not_used(placement: str) -> None:
    model, x = Tiny(), batch()
    with recorded() as reports:
        found = gradients(model, compiled(model, placement), x)
    (report,) = reports
    assert report.rewritten[PATTERN] == 2
    assert {s.weights for s in report.sites} == {"separate"}
    for site in report.sites:
        assert any("REQUIRES_GRAD" in note and placement in note for note in site.notes), site.notes
    assert "REQUIRES_GRAD" in str(report)
    assert groups_of(model) == ()
    assert_same(found, gradients(model, model, x))


def test_it_is_used_where_nothing_requires_grad() -> None:
    """The positive twin: the same call with frozen parameters, in grad mode."""
    model, x = Tiny().requires_grad_(False), batch()
    with recorded() as reports:
        close(compiled(model, "share")(x), model(x))
    (report,) = reports
    assert [(s.weights, s.notes) for s in report.sites] == [("share", ())] * 2


FROZEN = {
    "the first layer": lambda name: name.startswith("layers.0"),
    "gate, and not up": lambda name: "gate" in name,
    "up, and not gate": lambda name: "up" in name,
    "all but the norms": lambda name: "norm" not in name,
    "the norms": lambda name: "norm" in name,
    "down": lambda name: "down" in name,
    "all": lambda name: True,
}


@pytest.mark.parametrize("placement", ["separate", "inline", "share"])
@pytest.mark.parametrize("frozen", FROZEN)
def test_partly_frozen(frozen: str, placement: str) -> None:
    model, x = Tiny(), batch()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not FROZEN[frozen](name))
    with recorded() as reports:
        found = gradients(model, compiled(model, placement), x)
    assert count(reports) == 2
    assert_same(found, gradients(model, model, x))


@UNDER_GRAD
def test_gradients_accumulate(placement: str) -> None:
    model = Tiny()
    twin = copy.deepcopy(model)
    fast = compiled(model, placement)
    for seed in range(3):
        fast(batch(seed=seed)).square().sum().backward()
        twin(batch(seed=seed)).square().sum().backward()
    for found, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, atol=1e-4, rtol=1e-5)
    assert graphs() == 1


@pytest.mark.parametrize("placement", ["separate", "inline", "share"])
def test_five_steps_of_adamw(placement: str) -> None:
    model = Tiny()
    twin = copy.deepcopy(model)
    losses = []
    for each, call in ((model, compiled(model, placement)), (twin, twin)):
        optimizer = torch.optim.AdamW(each.parameters(), lr=1e-2)
        each_losses = []
        for seed in range(5):
            optimizer.zero_grad()
            loss = (call(batch(seed=seed)) - batch(seed=seed + 100)).square().mean()
            loss.backward()
            optimizer.step()
            each_losses.append(loss.item())
        losses.append(each_losses)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0][-1] != losses[0][0]
    for found, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert graphs() == 1


@pytest.mark.parametrize("layer", ["norm", "mlp.gate", "mlp.up", "mlp.down"])
@UNDER_GRAD
def test_a_weight_changed_before_backward_gives_no_wrong_gradient(placement: str, layer: str) -> None:
    """Eager raises. `inline` may instead have saved the stacked copy, and so differentiate at the old weights."""
    model, x = Tiny(layers=1), batch()
    at_the_old_weights = gradients(model, model, x)
    fast = compiled(model, placement, inner="aot_eager")
    weight = model.get_submodule(f"layers.0.{layer}").weight

    def change_in_between(x: Tensor) -> Tensor:
        out = fast(x)
        with torch.no_grad():
            weight.mul_(2)
        return out

    found, message = None, ""
    try:
        found = gradients(model, change_in_between, x)
    except RuntimeError as error:
        message = str(error)
    if found is None:
        assert "modified by an inplace operation" in message
    else:
        assert placement == "inline"
        assert_same(found, at_the_old_weights)


def test_a_kernel_without_a_backward_leaves_the_site_to_autograd() -> None:
    """Asked for by name it raises; the reason is said."""
    pattern = fxfuse.Backend().options.patterns[0]
    _register_forward_only(pattern)
    model, x = Tiny(layers=1), batch()
    fast = compiled(model, kernels={PATTERN: "forward_only"})
    with pytest.raises(fxfuse.OptionError, match="no backward"):
        fast(x)
    with torch.no_grad(), recorded() as reports:
        close(fast(x), model(x))
    assert [s.kernel for r in reports for s in r.sites] == ["forward_only"]


def _register_forward_only(pattern: Any) -> None:
    from fxfuse.kernels import kernels_for
    from fxfuse.kernels.gated_mlp import plain

    if "forward_only" not in kernels_for(PATTERN):
        fxfuse.kernel(pattern, name="forward_only")(plain)
