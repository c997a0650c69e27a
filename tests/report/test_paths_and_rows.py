"""A report names the module that the user knows, and has a row for every place that looks like a pattern."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import HIDDEN, PATTERN, Net, compiled, mlp, options, plain, rms, rows, sites
from torch import nn

import fxfuse


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n = Net(plain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.n(x)
        return result


class Model(nn.Module):
    """Blocks in several places, and a forward that is given."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b = Block(), Block()
        self.layers = nn.ModuleList([Block(), Block()])
        self.named = nn.ModuleDict({"x y": Block(), "it's": Block(), "0": Block()})
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(self, x)
        return result


class Tied(nn.Module):
    """``mlp`` is registered a second time, in ``outer``, which never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Block()
        self.outer = nn.Module()
        self.outer.mlp = self.mlp
        self.late = Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.late(self.mlp(x))
        return result


def locals_after_a_break(m: Model, x: torch.Tensor) -> torch.Tensor:
    a, b = m.a, m.b
    torch._dynamo.graph_break()
    return a(b(x))


def no_break(m: Model, x: torch.Tensor) -> torch.Tensor:
    return m.a(m.b(x))


def loop_with_breaks(m: Model, x: torch.Tensor) -> torch.Tensor:
    for layer in m.layers:
        torch._dynamo.graph_break()
        x = layer(x)
    return x


def loop(m: Model, x: torch.Tensor) -> torch.Tensor:
    for layer in m.layers:
        x = layer(x)
    return x


def a_block_and_a_layer(m: Model, x: torch.Tensor) -> torch.Tensor:
    block, layer = m.a, m.layers[1]
    torch._dynamo.graph_break()
    return layer(block(x))


def every_name(m: Model, x: torch.Tensor) -> torch.Tensor:
    for key in m.named:
        x = m.named[key](x)
    return x


def modules(model: Any, **more: Any) -> list[tuple[str, ...]]:
    found = fxfuse.explain(model, (rows(),), options=options(**more)).sites
    assert all(s.outcome == "rewritten" for s in found)
    return [s.modules for s in found]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (no_break, ["b.n", "a.n"]),
        (locals_after_a_break, ["b.n", "a.n"]),
        (loop, ["layers.0.n", "layers.1.n"]),
        (loop_with_breaks, ["layers.0.n"]),  # compiled once, run for both
        (a_block_and_a_layer, ["a.n", "layers.1.n"]),
        (every_name, ["named.x y.n", "named.it's.n", "named.0.n"]),
    ],
)
def test_each_site_is_in_its_own_module(body: Any, wanted: list[str]) -> None:
    model = Model(body)
    assert modules(model) == [(path,) for path in wanted]
    for (path,) in modules(model):
        assert isinstance(model.get_submodule(path), Net), "there is such a module"


def test_a_module_registered_twice_is_named_by_a_path_that_exists() -> None:
    (first,), (second,) = modules(Tied())
    assert first in {"mlp.n", "outer.mlp.n"}
    assert second == "late.n"


@pytest.mark.parametrize(
    ("make", "glob", "wanted"),
    [
        (Tied, "late", "late.n"),
        (lambda: Model(locals_after_a_break), "a", "a.n"),
        (lambda: Model(locals_after_a_break), "b", "b.n"),
        (lambda: Model(locals_after_a_break), "!b", "a.n"),
        (lambda: Model(loop), "layers.1", "layers.1.n"),
        (lambda: Model(no_break), "a", "a.n"),
    ],
)
def test_paths_select_by_the_modules_that_sites_are_in(make: Any, glob: str, wanted: str) -> None:
    report = fxfuse.explain(make(), (rows(),), options=options(paths=[glob]))
    assert [s.modules for s in report.sites if s.outcome == "rewritten"] == [(wanted,)]
    assert [s.code for s in report.sites if s.outcome != "rewritten"] == ["DISABLED"]


def test_the_order_of_names_does_not_depend_on_the_run() -> None:
    model = Model(locals_after_a_break)
    assert modules(model) == modules(model)


# --- a row for an activation that the pattern does not have ---------------------------------------------------------


def with_act(act: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        h = rms(m, x)
        return F.linear(act(F.linear(h, m.gate)) * F.linear(h, m.up), m.down)

    return body


def product_last(m: Any, x: torch.Tensor) -> torch.Tensor:
    h = rms(m, x)
    g = F.linear(h, m.gate)
    return F.linear(g * (torch.tanh(g) * F.linear(h, m.up)), m.down)


UNKNOWN: dict[str, Callable[..., Any]] = {
    "mish": with_act(F.mish),
    "elu": with_act(F.elu),
    "tanh": with_act(torch.tanh),
    "softplus": with_act(F.softplus),
    "squared relu": with_act(lambda g: F.relu(g).square()),
    "quick gelu": with_act(lambda g: g * torch.sigmoid(1.702 * g)),
    "leaky clamp": with_act(lambda g: g.clamp(min=-0.1)),
    "a product in another order": product_last,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_activation_has_a_row_with_a_reason(name: str) -> None:
    report = compiled(Net(UNKNOWN[name]), rows())
    assert report.sites, "silence is no answer"
    assert {s.outcome for s in report.sites} == {"missed"}
    best = max(report.sites, key=lambda s: s.matched_nodes)
    assert best.pattern == PATTERN
    begins = "expected act=silu, gelu, gelu_tanh or relu, found "
    if name == "squared relu":
        begins = "expected mul, found square (square) in between"
    assert best.reason.startswith(begins), str(report)
    assert best.reason in str(report)


@pytest.mark.parametrize("name", UNKNOWN)
def test_explain_has_the_row_where_the_pattern_was_not_named(name: str) -> None:
    assert fxfuse.explain(Net(UNKNOWN[name]), (rows(),)).sites


KNOWN: dict[str, Callable[..., Any]] = {
    "silu": with_act(F.silu),
    "gelu": with_act(F.gelu),
    "gelu by tanh": with_act(lambda g: F.gelu(g, approximate="tanh")),
    "gelu's polynomial": with_act(
        lambda g: 0.5 * g * (1.0 + torch.tanh(0.7978845608028654 * (g + 0.044715 * torch.pow(g, 3.0))))
    ),
    "relu": with_act(F.relu),
    "g * sigmoid(g)": with_act(lambda g: g * torch.sigmoid(g)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_activation_is_rewritten_and_has_one_row(name: str) -> None:
    report = compiled(Net(KNOWN[name]), rows())
    assert [s.outcome for s in report.sites] == ["rewritten"]


NO_SITE: dict[str, Callable[..., Any]] = {
    "a plain MLP": lambda m, x: F.linear(F.mish(F.linear(x, m.gate)), m.down),
    "products": lambda m, x: (x * x + 1) * x,
    "a linear": lambda m, x: F.linear(x, m.gate),
    "attention": lambda m, x: torch.softmax(x @ x.mT / HIDDEN, -1) @ x,
}


@pytest.mark.parametrize("name", NO_SITE)
def test_what_is_nothing_like_the_pattern_has_no_row_unless_named(name: str) -> None:
    assert not fxfuse.explain(Net(NO_SITE[name]), (rows(),)).sites


def beside_a_site(m: Any, x: torch.Tensor) -> torch.Tensor:
    return UNKNOWN["mish"](m, x) + plain(m, x)


def after_a_site(m: Any, x: torch.Tensor) -> torch.Tensor:
    return UNKNOWN["mish"](m, plain(m, x))


def beside_a_lone_silu(m: Any, x: torch.Tensor) -> torch.Tensor:
    return UNKNOWN["mish"](m, x) + F.silu(x)


@pytest.mark.parametrize(
    ("body", "fused"), [(beside_a_site, 1), (after_a_site, 1), (beside_a_lone_silu, 0), (UNKNOWN["mish"], 0)]
)
def test_an_unknown_activation_has_its_row_whatever_else_is_in_the_graph(body: Any, fused: int) -> None:
    report = fxfuse.explain(Net(body), (rows(),))
    assert report.rewritten[PATTERN] == fused
    assert [s.outcome for s in report.sites if s.outcome != "rewritten"] == ["missed"]


def test_norms_that_are_not_the_patterns_have_rows() -> None:
    """The default of ``nn.RMSNorm`` has no eps: it is the dtype's."""
    model = Net(lambda m, x: mlp(m, m.norm(x)), norm=nn.RMSNorm(HIDDEN))
    (site,) = sites(model, rows())
    assert site.outcome == "rewritten" or site.reason
    (twin,) = sites(Net(lambda m, x: mlp(m, m.norm(x)), norm=nn.RMSNorm(HIDDEN, eps=1e-6)), rows())
    assert twin.outcome == "rewritten"
