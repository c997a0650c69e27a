"""Sites of a kind are confirmed without a search: what is found is what a search finds, whatever differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxfuse
from fxfuse import Dim, Input, library
from fxfuse.match import find_sites, finding
from fxfuse.match.again import Again
from fxfuse.view import View
from tests.support import capture

HIDDEN, INNER = 8, 12
D = Dim("again_hidden")
PATTERNS = ("rms_norm", "add_rms_norm", "gated_mlp", "rms_norm_gated_mlp", "rms_norm_qkv")

Edit = Callable[["Layer"], None]


class Layer(nn.Module):
    """Two norms, sibling projections, and a gated MLP; an edit changes one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ParameterList([nn.Parameter(torch.rand(HIDDEN)) for _ in range(2)])
        self.q, self.k, self.o = nn.Linear(HIDDEN, 16, bias=False), nn.Linear(HIDDEN, 8, bias=False), nn.Linear(16, 8)
        self.gate, self.up = nn.Linear(HIDDEN, INNER, bias=False), nn.Linear(HIDDEN, INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)
        self.eps: Any = 1e-6
        self.act: Any = F.silu
        self.scale: Callable[[Tensor, Tensor, torch.dtype], Tensor] = lambda h, w, dtype: w * h.to(dtype)
        self.join: Callable[[Tensor, Tensor], Tensor] = lambda a, u: a * u
        self.power: Callable[[Tensor], Tensor] = lambda h: h.pow(2).mean(-1, keepdim=True)
        self.also: Callable[[Tensor], Any] = lambda h: 0.0

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        h = x.float()
        return self.scale(h * torch.rsqrt(self.power(h) + self.eps), weight, x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x, self.norms[0])
        x = x + self.o(torch.cat([self.q(h)[..., :8], self.k(h)], -1))
        h = self.norm(x, self.norms[1])
        x = x + self.down(self.join(self.act(self.gate(h)), self.up(h)))
        return x + self.also(h)


def _set(**attributes: Any) -> Edit:
    def edit(layer: Layer) -> None:
        for name, value in attributes.items():
            setattr(layer, name, value)

    return edit


def _one_weight(layer: Layer) -> None:
    layer.up.weight = layer.gate.weight


def _wider(layer: Layer) -> None:
    layer.gate, layer.up = nn.Linear(HIDDEN, 16, bias=False), nn.Linear(HIDDEN, 16, bias=False)
    layer.down = nn.Linear(16, HIDDEN, bias=False)


def _biased(*names: str) -> Edit:
    def edit(layer: Layer) -> None:
        for name in names:
            linear = getattr(layer, name)
            linear.bias = nn.Parameter(torch.rand(linear.out_features))

    return edit


def _buffer(layer: Layer) -> None:
    weight = layer.up.weight.detach()
    del layer.up.weight
    layer.up.register_buffer("weight", weight)


EDITS: dict[str, Edit] = {
    "nothing": lambda layer: None,
    "another eps": _set(eps=1e-5),
    "an eps of another type": _set(eps=1),
    "another activation": _set(act=F.relu),
    "an activation that is none": _set(act=torch.tanh),
    "another approximation": _set(act=lambda x: F.gelu(x, approximate="tanh")),
    "scaled late": _set(scale=lambda h, w, dtype: (w * h).to(dtype)),
    "scaled by 1 + w": _set(scale=lambda h, w, dtype: (h * (1.0 + w.float())).to(dtype)),
    "scaled by 2 + w": _set(scale=lambda h, w, dtype: (h * (2.0 + w.float())).to(dtype)),
    "operands swapped": _set(join=lambda a, u: u * a),
    "another operation": _set(join=lambda a, u: a + u),
    "both operands one": _set(join=lambda a, u: a * a),
    "another mean": _set(power=lambda h: h.pow(2).mean(0, keepdim=True)),
    "another power": _set(power=lambda h: h.pow(3).mean(-1, keepdim=True)),
    "an outside reader": _set(also=lambda h: h),
    "a reader of its size": _set(also=lambda h: float(h.shape[-1])),
    "a further projection": _set(also=lambda h: F.linear(h, torch.ones(HIDDEN, HIDDEN, dtype=h.dtype))),
    "one weight": _one_weight,
    "another width": _wider,
    "a bias": _biased("gate"),
    "biases": _biased("gate", "up", "q", "k"),
    "a bias of one sibling": _biased("q"),
    "a buffer": _buffer,
}  # fmt: skip


def _found(graph: Any, examples: Any) -> list[Any]:
    told = []
    for pattern in PATTERNS:
        for site in find_sites(View(graph, examples), library.lookup(pattern, "test")):
            match = site.match
            captures = {k: str(v) for k, v in match.captures.items()} if match is not None else {}
            bound = sorted((str(t), str(v)) for t, v in match.bound.items()) if match is not None else []
            nodes = [n.name for n in match.nodes] if match is not None else []
            code = site.reason.code if site.reason is not None else ""
            told.append((pattern, str(site.seed), site.variant, code, site.matched, captures, bound, nodes))
    return told


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", EDITS)
def test_what_is_found_is_what_a_search_finds(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = [Layer() for _ in range(3)]
    EDITS[name](layers[1])
    gm, examples = capture(nn.Sequential(*layers).to(dtype), torch.randn(3, HIDDEN, dtype=dtype))
    confirmed: list[object] = []
    at = Again.at

    def counted(self: Again, seed: Any) -> Any:
        confirmed.append(at(self, seed))
        return confirmed[-1]

    monkeypatch.setattr(Again, "at", counted)
    found = _found(gm.graph, examples)
    assert any(confirmed), "no site was confirmed, so nothing was tried"
    monkeypatch.setattr(finding, "KINDS", 0)
    assert found == _found(gm.graph, examples)


def test_a_repeated_layer_costs_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    gm, examples = capture(nn.Sequential(*(Layer() for _ in range(6))), torch.randn(3, HIDDEN))
    searches: list[object] = []

    class Counting(finding.Search):
        def run(self, *args: Any, **keywords: Any) -> Any:
            searches.append(self)
            return super().run(*args, **keywords)

    monkeypatch.setattr(finding, "Search", Counting)
    others = 6  # norms that feed no siblings, or read a sum with a number
    for name, most in (("rms_norm_gated_mlp", 1), ("rms_norm_qkv", 1 + others), ("add_rms_norm", 2 + others)):
        searches.clear()
        assert find_sites(View(gm.graph, examples), library.lookup(name, "test"))
        assert len(searches) <= most, name


@fxfuse.pattern("again_joined")
def joined(x: Any = Input(..., D), y: Any = Input(..., D)) -> Any:
    return torch.cat((torch.sigmoid(x), y), -1).square()


class Joins(nn.Module):
    """The middle one joins as many tensors as it is told, of which the first two are those of the others."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.counts = (2, count, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1.0
        for n in self.counts:
            x = torch.cat([torch.sigmoid(x), x, x][:n], -1).square()[..., :HIDDEN]
        return x


@pytest.mark.parametrize("count", [1, 2, 3])
def test_as_many_items_as_before(count: int) -> None:
    gm, examples = capture(Joins(count), torch.randn(3, HIDDEN))
    found = [site for site in find_sites(View(gm.graph, examples), joined) if site.match is not None]
    assert len(found) == 3 if count == 2 else len(found) == 2
