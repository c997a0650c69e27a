"""Near misses of patterns with several outputs, siblings, kept values and absent operands: the first reason, exact."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from match import example_models as models
from support import Net, capture, rows
from torch import fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from fxfuse import Dim, Input, Param, Pattern, Scalar, keep, many, one_of, pattern
from fxfuse.match import Found, find_sites
from fxfuse.match.finding import FEW, NEAR
from fxfuse.match.reasons import Failure
from fxfuse.view import View

D, N, K = Dim("hidden"), Dim("intermediate"), Dim("kv")


def norm(x: Any, weight: Any, eps: Any) -> Any:
    h = x.float()
    return weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


@pattern("norm_and_two")
def norm_and_two(
    x: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float), a: Any = Param(N, D), b: Any = Param(K, D)
) -> Any:
    h = norm(x, weight, eps)
    return F.linear(h, a), F.linear(h, b)


@pattern("norm_and_three")
def norm_and_three(
    x: Any = Input(..., D),
    weight: Any = Param(D),
    eps: Any = Scalar(float),
    a: Any = Param(N, D),
    b: Any = Param(N, D),
    c: Any = Param(K, D),
) -> Any:
    h = norm(x, weight, eps)
    return F.linear(h, a), F.linear(h, b), F.linear(h, c)


@pattern("norm_and_bounds")
def norm_and_bounds(
    x: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float), a: Any = Param(N, D), b: Any = Param(N, D)
) -> Any:
    h = norm(x, weight, eps)
    return torch.tanh(F.linear(h, a)), torch.sigmoid(F.linear(h, b))


@pattern("norm_and_many")
def norm_and_many(
    x: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float), ws: Any = Param(N, D, many=True)
) -> Any:
    h = norm(x, weight, eps)
    return many(lambda w: F.linear(h, w), ws)


@pattern("kept_norm")
def kept_norm(x: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float), a: Any = Param(N, D)) -> Any:
    h = keep(norm(x, weight, eps))
    return torch.tanh(F.linear(h, a))


@pattern("maybe_added")
def maybe_added(
    x: Any = Input(..., D),
    residual: Any = Input(..., D, optional=True),
    weight: Any = Param(D),
    eps: Any = Scalar(float),
) -> Any:
    h = x if residual is None else x + residual
    return norm(h, weight, eps).tanh()


@pattern("nested")
def nested(x: Any = Input(..., D), w: Any = Param(N, D), b: Any = Param(N)) -> Any:
    h = F.linear(x, w)
    g = one_of(
        "scale",
        none=lambda: h,
        bias=lambda: one_of("by", sum=lambda: h + b, product=lambda: h * b),
    )
    return torch.tanh(g.exp().neg())


def one_of_two(m: Any, x: Any) -> Any:
    h = models.norm(m, x)
    return F.linear(h, m.gate).sin()


def two(m: Any, x: Any) -> Any:
    h = models.norm(m, x)
    return F.linear(h, m.gate).sin(), F.linear(h, m.up).sin()


def bounds(m: Any, x: Any) -> Any:
    h = models.norm(m, x)
    return torch.tanh(F.linear(h, m.gate)), torch.sigmoid(F.linear(h, m.up))


def bounds_apart(m: Any, x: Any) -> Any:
    h = models.norm(m, x)
    return torch.tanh(F.linear(h, m.gate)), F.relu6(F.linear(h, m.up))


def kept(m: Any, x: Any) -> Any:
    h = models.norm(m, x)
    return torch.tanh(F.linear(h, m.gate)), h.sin()


def kept_and_linear_read(m: Any, x: Any) -> Any:
    h = models.norm(m, x)
    g = F.linear(h, m.gate)
    return torch.tanh(g), g.sin(), h.sin()


def added(m: Any, x: Any) -> Any:
    return models.norm(m, x + m.weight).tanh()


def added_and_clamped(m: Any, x: Any) -> Any:
    return models.norm(m, x + m.weight).clamp(min=0).tanh()


def scaled(m: Any, x: Any) -> Any:
    return torch.tanh((F.linear(x, m.gate) * m.gate_bias).exp().neg())


def scaled_by_another(m: Any, x: Any) -> Any:
    return torch.tanh((F.linear(x, m.gate) - m.gate_bias).exp().neg())


ROWS: dict[str, tuple[Pattern, Any, Any, tuple[str, str]]] = {
    "the second output is not there": (
        norm_and_two,
        one_of_two,
        two,
        ("OP", "expected a further linear to read h_2, found none"),
    ),
    "one of two outputs differs": (
        norm_and_bounds,
        bounds_apart,
        bounds,
        ("OP", "expected sigmoid, found relu6 (relu6)"),
    ),
    "a group of one": (norm_and_many, one_of_two, two, ("ARITY", "expected at least 2 siblings, found 1")),
    "what is kept may be read, another value may not": (
        kept_norm,
        kept_and_linear_read,
        kept,
        ("EXTERNAL_USE", "the result of linear (g) is read outside the site"),
    ),
    "the form with the operand is nearer": (
        maybe_added,
        added_and_clamped,
        added,
        ("OP", "expected tanh, found clamp (clamp) in between"),
    ),
    "a choice inside a choice": (
        nested,
        scaled_by_another,
        scaled,
        ("ALTERNATIVES", "expected scale=none or bias, found sub (sub)"),
    ),
}


def found(some: Pattern, body: Any) -> list[Found]:
    torch._dynamo.reset()
    gm, examples = capture(Net(body), rows())
    return find_sites(View(gm.graph, examples), some)


@pytest.mark.parametrize("name", ROWS)
def test_the_first_reason(name: str) -> None:
    some, body, twin, (code, sentence) = ROWS[name]
    (near,) = found(some, body)
    assert near.reason is not None
    assert (near.reason.code, near.reason.sentence()) == (code, sentence)
    assert near.is_near
    assert [f.reason for f in found(some, twin)] == [None]


def test_a_row_for_a_place_not_for_a_seed() -> None:
    """A pattern that holds two of its seeds has one row where it nearly is."""

    @pattern("two_norms")
    def two_norms(x: Any = Input(..., D), w: Any = Param(D), v: Any = Param(D), eps: Any = Scalar(float)) -> Any:
        return norm(x, w, eps) + norm(x.neg(), v, eps)

    def body(m: Any, x: Any) -> Any:
        return models.norm(m, x) - models.norm(m, x.neg())

    (near,) = found(two_norms, body)
    assert near.reason is not None
    assert near.reason.sentence() == "expected add, found sub (sub)"


def test_a_lone_op_is_no_near_miss_beside_a_site_and_the_best_there_is_alone() -> None:
    (HEADLINE,) = (p for p in _library() if p.name == "rms_norm_gated_mlp")
    assert [f.reason for f in found(HEADLINE, lambda m, x: models.site(m, x) + F.silu(x))] == [None]
    (far,) = found(HEADLINE, lambda m, x: F.silu(x))
    assert not far.is_near
    assert far.matched < max(FEW, NEAR * far.total)
    assert isinstance(far.reason, Failure)


def test_a_place_that_a_larger_site_has_is_no_news() -> None:
    (HEADLINE,) = (p for p in _library() if p.name == "rms_norm_gated_mlp")
    torch._dynamo.reset()
    gm, examples = capture(Net(models.site), rows())
    view = View(gm.graph, examples)
    (site,) = find_sites(view, HEADLINE)
    (near,) = find_sites(view, norm_and_three)
    assert near.reason is not None
    assert (near.matched, near.total) == (8, 9)
    assert near.reason.sentence() == "expected a further linear to read mul_1, found none"
    assert find_sites(view, norm_and_three, taken=site.nodes) == []


def _library() -> tuple[Pattern, ...]:
    from fxfuse.library import defaults

    return defaults()


def stacked(layers: int) -> fx.GraphModule:
    """A graph of so many layers that are near misses (a router reads each norm), as FX traces it: quick to make."""

    def body(x: Any, w: Any, gate: Any, up: Any, down: Any, router: Any) -> Any:
        for _ in range(layers):
            h = w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
            x = x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down) + F.linear(h, router).sum()
        return x

    gm = fx.symbolic_trace(body)
    tensors = [torch.zeros(s, device="meta") for s in ((4, 8), (8,), (12, 8), (12, 8), (8, 12), (4, 8))]
    FakeTensorProp(gm).propagate(*tensors)
    for node in gm.graph.nodes:
        node.meta["example_value"] = node.meta.get("val")
    for node, leaf in zip(gm.graph.find_nodes(op="placeholder")[1:], tensors[1:], strict=True):
        node.meta["example_value"] = torch.nn.Parameter(leaf)
    return gm


def test_near_misses_take_time_in_proportion() -> None:
    (HEADLINE,) = (p for p in _library() if p.name == "rms_norm_gated_mlp")
    compared = {}
    for layers in (20, 80):
        view = View(stacked(layers).graph)
        counted = 0

        def count(frame: Any, event: str, arg: Any) -> None:
            nonlocal counted
            counted += event == "call"

        view.find("silu")
        sys.setprofile(count)
        try:
            sites = find_sites(view, HEADLINE)
        finally:
            sys.setprofile(None)
        assert [f.reason.code for f in sites if f.reason is not None] == ["EXTERNAL_USE"] * layers
        compared[layers] = counted
    assert compared[80] <= 4.2 * compared[20]
