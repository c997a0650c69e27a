"""Modules without memory: nothing of a model is written, held or called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxfuse import PatternError
from fxfuse.adapters.construct import arguments
from fxfuse.adapters.hollow import emptied, filled, hollow, state, tensors_of


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.GELU("tanh"), nn.BatchNorm1d(3))


def test_a_hollow_module_has_the_shell_and_no_memory() -> None:
    one = model()
    made = hollow(one)
    assert repr(made) == repr(one)
    assert {t.device.type for t in tensors_of(made).values()} == {"meta"}
    assert {n: t.shape for n, t in tensors_of(made).items()} == {n: t.shape for n, t in tensors_of(one).items()}
    made[0].in_features = 7
    made.add_module("more", nn.ReLU())
    assert one[0].in_features == 4
    assert len(one) == 3
    assert {t.device.type for t in tensors_of(one).values()} == {"cpu"}


def test_a_shell_computes_with_what_it_is_given() -> None:
    one = nn.Sequential(nn.Linear(4, 3), nn.GELU("tanh"))
    shell = emptied(one)
    assert not tensors_of(shell)
    x = torch.randn(2, 4)
    assert torch.equal(filled(shell, tensors_of(one))(x), one(x))
    doubled = {name: 2 * t for name, t in tensors_of(one).items()}
    assert not torch.equal(filled(shell, doubled)(x), one(x))
    assert not tensors_of(shell), "the shell itself stays empty"


def test_hooks_and_patched_calls_stay_with_the_model() -> None:
    one, called = nn.Linear(4, 3), []
    one.register_forward_hook(lambda *given: called.append(1))
    one.forward = lambda x: called.append(2)  # type: ignore[method-assign, assignment]  # as people patch a layer
    made = filled(hollow(one), tensors_of(one))
    assert made(torch.ones(1, 4)).shape == (1, 3)
    assert called == []
    one(torch.ones(1, 4))
    assert called == [2, 1]


def test_a_tied_module_stays_one() -> None:
    inner = nn.Linear(2, 2)
    made = hollow(nn.ModuleList([inner, inner]))
    assert made[0] is made[1]


def test_a_parameter_that_is_no_plain_tensor_is_refused() -> None:
    class Packed(torch.Tensor):
        pass

    one = nn.Linear(2, 2)
    one.weight = nn.Parameter(torch.ones(2, 2).as_subclass(Packed), requires_grad=False)  # type: ignore[arg-type]  # is one
    with pytest.raises(PatternError, match="weight is a Packed; a layer can be adapted to plain parameters only"):
        hollow(one)


def test_what_is_told_of_a_module() -> None:
    def told(one: nn.Module) -> list[str]:
        return list(state(one, identity=True))

    assert told(nn.GELU("tanh")) == told(nn.GELU("tanh"))
    for a, b in [
        (nn.GELU("tanh"), nn.GELU("none")),
        (nn.Linear(2, 3), nn.Linear(2, 4)),
        (nn.Linear(2, 3), nn.Linear(2, 3, bias=False)),
        (nn.RMSNorm(2, eps=1e-6), nn.RMSNorm(2, eps=1e-5)),
        (nn.SiLU(), nn.ReLU()),
    ]:
        assert told(a) != told(b)


class Settings:
    def __init__(self, limit: float) -> None:
        self.limit = limit


@pytest.mark.parametrize("identity", [True, False])
def test_an_object_that_a_module_holds_is_told_apart(identity: bool) -> None:
    """Else one op would serve two layers that compute different things."""

    def told(value: Any) -> list[str]:
        one = nn.Module()
        one.settings = value
        return list(state(one, identity))

    same = Settings(1.0)
    assert told(same) == told(same)
    assert told(same) != told(Settings(2.0))
    assert (told(same) == told(Settings(1.0))) is not identity
    assert told(torch.relu) != told(torch.tanh)
    assert told([nn.GELU("tanh")]) != told([nn.GELU("none")])
    assert told(torch.ones(2)) != told(torch.zeros(2))
    assert told(torch.ones(2, device="meta")) != told(torch.ones(3, device="meta"))


class Norm(nn.Module):
    def __init__(self, size, eps=1e-6, group=1):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.variance_epsilon = eps


class WithConfig(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.ones(config["size"]))


class Layout(nn.Module):
    def __init__(self, size, eps=0.5):
        super().__init__()


class OtherNames(nn.Module):
    def __init__(self, hidden_size, slope=0.5):
        super().__init__()


class TakesConfig(nn.Module):
    def __init__(self, config):
        super().__init__()


class TakesGroup(nn.Module):
    def __init__(self, size, group=2):
        super().__init__()


def test_constructor_arguments_are_found_where_the_module_keeps_them() -> None:
    assert arguments(Layout, Norm(12, 0.25)) == {"size": 12, "eps": 0.25}
    assert arguments(TakesConfig, WithConfig(config := {"size": 3})) == {"config": config}


@pytest.mark.parametrize(
    ("layout", "module", "said"),
    [
        (OtherNames, Norm(12), "OtherNames takes 'hidden_size', and Norm does not tell what it was given; pass init="),
        (Layout, WithConfig({"size": 3}), "Layout takes 'size', and WithConfig does not tell"),
        (TakesGroup, Norm(12, group=4), "TakesGroup takes 'group', and Norm does not tell"),
    ],
)
def test_constructor_arguments_that_are_not_to_be_found_raise(layout: Any, module: nn.Module, said: str) -> None:
    with pytest.raises(PatternError, match=said):
        arguments(layout, module)
