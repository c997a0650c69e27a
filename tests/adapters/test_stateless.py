"""A layer without a layout, by the class or the path of the modules whose attributes it reads; any model will do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxfuse
from fxfuse import PatternError
from fxfuse.adapters import from_kernelconfig
from tests.adapters import hub_layers


class Norm(nn.Module):
    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 8))
        self.variance_epsilon = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * h.to(x.dtype)


class Doubled(Norm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Block(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.linear = norm, nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(self.norm(x))


class Stack(nn.Module):
    def __init__(self, *norms: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(Block, norms))
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


X = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))


def sites(model: nn.Module, mapping: Any, **more: Any) -> list[tuple[str, str]]:
    """Where something was rewritten, after the result was found to be eager's."""
    regions = from_kernelconfig(mapping, model, **more)
    backend = fxfuse.Backend(patterns=[*regions], inner="eager", on_error="raise")
    torch.testing.assert_close(torch.compile(model, backend=backend)(X), model(X), rtol=1e-5, atol=1e-6)
    return [(s.pattern, *s.modules) for s in fxfuse.reports()[-1].sites if s.outcome == "rewritten"]


@pytest.mark.parametrize("layer", [hub_layers.Traced, hub_layers.Norm])
def test_by_class(layer: type) -> None:
    like = None if layer is hub_layers.Traced else "x"
    found = sites(Stack(Norm(), Norm()), {"Norm": layer}, like=like)
    assert found == [(layer.__name__, f"layers.{i}.norm") for i in range(2)]


def test_by_path() -> None:
    mapping = {(("Norm", "layers.1.norm"),): hub_layers.Traced}
    assert sites(Stack(Norm(), Norm()), mapping) == [("Traced", "layers.1.norm")]


def test_a_class_at_some_of_the_places_only() -> None:
    """The exact name wins over names that contain it, and a path with another class is left alone."""
    found = sites(Stack(Norm(), Doubled(), Norm()), {"Norm": hub_layers.Traced})
    assert found == [("Traced_0_norm", "layers.0.norm"), ("Traced_2_norm", "layers.2.norm")]
    assert sites(Stack(Norm(), Doubled()), {"Doubled": hub_layers.Traced}) == [], "it computes something else"


def test_eps_is_each_module_s_own() -> None:
    found = sites(Stack(Norm(0.5), Norm(1e-6)), {"Norm": hub_layers.Traced})
    assert found == [("Traced_0_norm", "layers.0.norm"), ("Traced_1_norm", "layers.1.norm")]


def test_several_layers_at_once() -> None:
    model = Stack(Norm(), Norm())
    mapping = {"Norm": hub_layers.Traced, (("Linear", "layers.0.linear"),): Linear}
    assert len(sites(model, mapping)) == 3


class Linear(nn.Module):
    can_torch_compile = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.t() + self.bias


def test_a_module_that_lacks_what_the_layer_reads() -> None:
    (one,) = from_kernelconfig({(("Linear", "layers.0.linear"),): hub_layers.Traced}, model := Stack(Norm()))
    (site,) = fxfuse.explain(model, (X,), options={"patterns": [one]}).sites
    assert (site.outcome, site.code) == ("kept", "VERIFY")
    assert "variance_epsilon" in site.reason


def test_two_modules_need_a_layout() -> None:
    with pytest.raises(PatternError, match="replaces 2 modules, and no class TracedLayout beside it"):
        from_kernelconfig({(("Norm", "layers.*.norm"), ("L", "layers.*.linear")): hub_layers.Traced}, Stack(Norm()))
