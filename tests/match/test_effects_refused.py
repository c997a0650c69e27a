"""Writes, dropout, regions, devices and foreign weights at a site: refused with a reason, or proven harmless."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import HIDDEN, INTER, Net, compiled, mlp, options, plain, rms, rows, sites, sole
from torch import fx, nn
from torch.testing._internal.two_tensor import TwoTensor

import fxfuse
from fxfuse.options import parse


def parts(m: Any, x: Any, between: Callable[[], Any]) -> Any:
    """The site, with something happening after its statistics and before its scale."""
    factor = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    between()
    return mlp(m, m.weight * (x * factor))


def inside_mlp(m: Any, x: Any, between: Callable[[Any], Any]) -> Any:
    """The site, with something happening to the gate's projection before the product."""
    h = rms(m, x)
    g, u = F.linear(h, m.gate), F.linear(h, m.up)
    between(u)
    return F.linear(F.silu(g) * u, m.down)


def before_and_after(m: Any, x: Any) -> Any:
    x.mul_(2)
    y = plain(m, x)
    x.add_(1)
    return y, x + 0


@torch.library.custom_op("fxfuse_tests::double_in_place", mutates_args={"x"})
def double_in_place(x: torch.Tensor) -> None:
    x.mul_(2)


WRITES: dict[str, Callable[..., Any]] = {
    "method": lambda m, x: parts(m, x, lambda: x.add_(1)),
    "operator": lambda m, x: parts(m, x, lambda: x.__imul__(2)),
    "setitem": lambda m, x: parts(m, x, lambda: x.__setitem__((..., 0), 1.0)),
    "through a view": lambda m, x: parts(m, x, lambda: x.view(-1).mul_(2)),
    "through a chunk": lambda m, x: parts(m, x, lambda: x.chunk(2, -1)[1].mul_(2)),
    "through a no-op cast": lambda m, x: parts(m, x, lambda: x.float().mul_(2)),
    "out=": lambda m, x: parts(m, x, lambda: torch.mul(x, 2, out=x)),
    "inplace flag by name": lambda m, x: parts(m, x, lambda: F.relu(x, inplace=True)),
    "inplace flag by position": lambda m, x: parts(m, x, lambda: F.hardswish(x, True)),
    "inplace flag of hardtanh": lambda m, x: parts(m, x, lambda: nn.ReLU6(inplace=True)(x)),
    "inplace flag of leaky_relu": lambda m, x: parts(m, x, lambda: F.leaky_relu(x, 0.1, True)),
    "aten op": lambda m, x: parts(m, x, lambda: torch.ops.aten.mul_.Scalar(x, 2)),
    "aten packet": lambda m, x: parts(m, x, lambda: torch.ops.aten.mul_(x, 2)),
    "foreach": lambda m, x: parts(m, x, lambda: torch._foreach_mul_([x], 2.0)),
    "copy_": lambda m, x: parts(m, x, lambda: x.copy_(x * 2)),
    "custom op": lambda m, x: parts(m, x, lambda: double_in_place(x)),
    "custom op, by its packet": lambda m, x: parts(m, x, lambda: torch.ops.fxfuse_tests.double_in_place(x)),
    "a weight": lambda m, x: parts(m, x, lambda: m.down.mul_(2)),
    "a weight, before the site": lambda m, x: (m.gate.mul_(1.0), plain(m, x))[1],
    "a weight, after the site": lambda m, x: (plain(m, x), m.up.mul_(1.0))[0],
}

HARMLESS: dict[str, Callable[..., Any]] = {
    "before and after the site": before_and_after,
    "another tensor": lambda m, x: parts(m, x, lambda: torch.zeros(3).add_(1)),
    "a copy": lambda m, x: parts(m, x, lambda: x.clone().add_(1)),
    "another parameter": lambda m, x: parts(m, x, lambda: m.router.mul_(1.0)),
    "requires_grad_": lambda m, x: parts(m, x, lambda: (x * 2).requires_grad_(False)),
}


@pytest.mark.parametrize("body", [pytest.param(b, id=name) for name, b in WRITES.items()])
def test_a_write_is_refused(body: Callable[..., Any]) -> None:
    report = compiled(Net(body), rows())
    site = sole(report.sites)
    assert (site.outcome, site.code) == ("missed", "MUTATION"), str(report)
    assert site.detail is not None
    assert site.detail.reader_node, "the reason names the node that writes"


@pytest.mark.parametrize("body", [pytest.param(b, id=name) for name, b in HARMLESS.items()])
def test_a_write_elsewhere_is_not(body: Callable[..., Any]) -> None:
    assert sole(compiled(Net(body), rows()).sites).outcome == "rewritten"


def seen_copy(copy: Callable[[Any], Any]) -> Callable[..., Any]:
    """The site on a copy of x, taken before x is written."""

    def body(m: Any, x: Any) -> Any:
        y = copy(x)
        x.add_(1)
        return plain(m, y)

    return body


@pytest.mark.parametrize(
    "copy",
    [
        pytest.param(lambda x: x.clone(), id="clone"),
        pytest.param(lambda x: x.to(x.dtype, copy=True), id="to(copy=True)"),
        pytest.param(lambda x: F.dropout(x, 0.0, True), id="dropout(0)"),
        pytest.param(lambda x: x.transpose(0, 1).contiguous().transpose(0, 1).contiguous(), id="contiguous"),
        pytest.param(lambda x: x.contiguous(), id="contiguous, no copy"),
        pytest.param(lambda x: x.float(), id="no-op cast"),
        pytest.param(lambda x: x.view(2, 3, HIDDEN), id="no-op view"),
    ],
)
def test_a_copy_whose_source_is_written_is_read_as_the_copy(copy: Callable[[Any], Any]) -> None:
    """Whether or not the site is rewritten, the numbers are eager's (asserted by ``compiled``)."""
    compiled(Net(seen_copy(copy)), rows())


@pytest.mark.parametrize("written", ["clone", "source"])
def test_a_write_to_a_clone_or_its_source_inside_the_mlp(written: str) -> None:
    def body(m: Any, x: Any) -> Any:
        def between(u: Any) -> None:
            (u.clone() if written == "clone" else u).mul_(2)

        return inside_mlp(m, x, between)

    site = sole(compiled(Net(body), rows()).sites)
    assert site.code in ({"EXTERNAL_USE"} if written == "clone" else {"EXTERNAL_USE", "MUTATION"})


# --- dropout --------------------------------------------------------------------------------------------------------


class Dropping(Net):
    def __init__(self, where: str) -> None:
        super().__init__(lambda m, x: m.run(x))
        self.where = where
        self.drop = nn.Dropout(0.5)

    def run(self, x: Any) -> Any:
        h = rms(self, x)  # type: ignore[arg-type]
        h = self.drop(h) if self.where == "norm" else h
        a = F.silu(F.linear(h, self.gate)) * F.linear(h, self.up)
        return F.linear(self.drop(a) if self.where == "product" else a, self.down)


@pytest.mark.parametrize("where", ["norm", "product"])
def test_active_dropout_is_refused_and_inactive_is_seen_through(where: str) -> None:
    model = Dropping(where)
    assert sole(compiled(model.train(), rows()).sites).code == "OP"
    assert sole(compiled(model.eval(), rows()).sites).outcome == "rewritten"


# --- regions --------------------------------------------------------------------------------------------------------


def switched(context: Callable[[], Any], part: str) -> Callable[..., Any]:
    def body(m: Any, x: Any) -> Any:
        with context() if part == "all" else contextlib.nullcontext():
            with context() if part == "norm" else contextlib.nullcontext():
                h = rms(m, x)
            return mlp(m, h)

    return body


def autocast() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize(
    ("context", "part", "outcome"),
    [
        pytest.param(torch.no_grad, "norm", "REGION", id="no_grad around the norm only"),
        pytest.param(torch.no_grad, "all", "rewritten", id="no_grad around the site"),
        pytest.param(autocast, "norm", "REGION", id="autocast around the norm only"),
        pytest.param(autocast, "all", "REGION", id="autocast around the site"),
    ],
)
def test_regions_of_the_graph(context: Callable[[], Any], part: str, outcome: str) -> None:
    model = Net(switched(context, part)).requires_grad_()
    site = sole(compiled(model, rows(), rtol=1e-2, atol=1e-2).sites)
    assert outcome in (site.outcome, site.code)


@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_around_the_call(enabled: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        site = sole(compiled(Net(plain), rows()).sites)
    assert (site.code == "REGION") if enabled else (site.outcome == "rewritten")


# --- weights that are none ------------------------------------------------------------------------------------------


def test_a_weight_that_is_an_activation() -> None:
    def body(m: Any, x: Any, gate: Any) -> Any:
        h = rms(m, x)
        return F.linear(F.silu(F.linear(h, gate)) * F.linear(h, m.up), m.down)

    gate = rows(INTER, HIDDEN, seed=1)
    site = sole(compiled(Net(body), rows(), gate).sites)
    assert site.code == "NOT_A_PARAM"
    assert "gate" in site.reason
    held = Net(lambda m, x: body(m, x, m.held), held=nn.Parameter(gate, requires_grad=False))
    assert sole(compiled(held, rows()).sites).outcome == "rewritten"


def test_a_buffer_serves_as_a_weight() -> None:
    model = Net(plain)
    weight = model.weight.data
    del model.weight
    model.register_buffer("weight", weight)
    assert sole(compiled(model, rows()).sites).outcome == "rewritten"


def test_a_weight_of_a_tensor_subclass() -> None:
    model = Net(plain)
    model.gate = nn.Parameter(TwoTensor(model.gate.data, model.gate.data.clone()), requires_grad=False)
    (site,) = sites(model, rows())
    assert (site.outcome, site.code) == ("missed", "NOT_A_PARAM")
    assert "TwoTensor" in site.reason


def hand_built(**devices: str) -> fx.GraphModule:
    """The site as a bare FX graph of placeholders, each on the device that is named for it (cpu otherwise)."""
    graph = fx.Graph()
    shapes = {
        "x": (3, HIDDEN), "weight": (HIDDEN,), "gate": (INTER, HIDDEN), "up": (INTER, HIDDEN), "down": (HIDDEN, INTER)
    }  # fmt: skip
    held: dict[str, fx.Node] = {}
    for name, shape in shapes.items():
        node = held[name] = graph.placeholder(name)
        example = torch.randn(shape, device=devices.get(name, "cpu"))
        node.meta["example_value"] = example if name == "x" else nn.Parameter(example)

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = graph.call_function(target, args, kwargs)
        shape = {F.linear: (3, HIDDEN if held["down"] in args else INTER)}.get(target, (3, HIDDEN))
        if any(isinstance(a, fx.Node) and tuple(a.meta["example_value"].shape) == (3, INTER) for a in args):
            shape = (3, HIDDEN) if held["down"] in args else (3, INTER)
        node.meta["example_value"] = torch.empty(shape if target is not torch.mean else (3, 1))
        return node

    x = held["x"]
    mean = call(torch.mean, call(torch.pow, x, 2), -1, keepdim=True)
    h = call(torch.mul, held["weight"], call(torch.mul, x, call(torch.rsqrt, call(torch.add, mean, 1e-6))))
    g, u = call(F.linear, h, held["gate"]), call(F.linear, h, held["up"])
    graph.output(call(F.linear, call(torch.mul, call(F.silu, g), u), held["down"]))
    return fx.GraphModule(nn.Module(), graph)


@pytest.mark.parametrize("name", ["gate", "down", "weight"])
def test_weights_on_two_devices(name: str) -> None:
    before = hand_built(**{name: "meta"})
    code = before.code
    (site,) = fxfuse.rewrite(before, options=options()).sites
    assert (site.outcome, site.code) == ("missed", "CONSTRAINT")
    assert "meta" in site.reason
    assert "cpu" in site.reason
    assert before.code == code, "a refused graph is not edited"


def test_weights_on_one_device() -> None:
    (site,) = fxfuse.rewrite(hand_built(), options=options()).sites
    assert site.outcome == "rewritten"


def test_placeholders_without_parameters_are_no_weights() -> None:
    graph = hand_built()
    for node in graph.graph.find_nodes(op="placeholder"):
        node.meta["example_value"] = node.meta["example_value"].detach()
    (site,) = fxfuse.rewrite(graph, options=options()).sites
    assert site.code == "NOT_A_PARAM"


def test_options_of_the_tests_are_valid() -> None:
    assert parse(options()).on_error == "raise"
