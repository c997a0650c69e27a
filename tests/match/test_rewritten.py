"""Spellings, shapes and dtypes under which the headline site is found and rewritten, with eager's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import HIDDEN, INTER, PATTERN, Net, compiled, mlp, options, plain, rms, rows, sites, sole
from torch import nn

import fxfuse

Body = Callable[..., Any]
EPS = 1e-6
LOW = (torch.bfloat16, torch.float16)


def mean_square(x: Any) -> Any:
    return x.pow(2).mean(-1, keepdim=True)


def by_norm(change: Callable[[Any, Any], Any]) -> Body:
    return lambda m, x: mlp(m, change(m.weight, x))


def by_mlp(change: Callable[[Any, Any], Any]) -> Body:
    return lambda m, x: change(m, rms(m, x))


NORMS: dict[str, Callable[[Any, Any], Any]] = {
    "x*x": lambda w, x: w * (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS)),
    "x**2": lambda w, x: w * (x * torch.rsqrt((x**2).mean(-1, keepdim=True) + EPS)),
    "torch.square": lambda w, x: w * (x * torch.rsqrt(torch.square(x).mean(-1, keepdim=True) + EPS)),
    "x.square()": lambda w, x: w * (x * x.square().mean(-1, keepdim=True).add(EPS).rsqrt()),
    "pow(-0.5)": lambda w, x: w * (x * torch.pow(mean_square(x) + EPS, -0.5)),
    "** -0.5": lambda w, x: w * (x * (mean_square(x) + EPS) ** -0.5),
    "1/sqrt": lambda w, x: w * (x * (1 / torch.sqrt(mean_square(x) + EPS))),
    "1/pow(0.5)": lambda w, x: w * (x * (1.0 / (mean_square(x) + EPS) ** 0.5)),
    "sqrt.reciprocal": lambda w, x: w * (x * torch.sqrt(mean_square(x) + EPS).reciprocal()),
    "x/sqrt": lambda w, x: w * (x / torch.sqrt(mean_square(x) + EPS)),
    "x.div(sqrt)": lambda w, x: w * x.div((mean_square(x) + EPS).sqrt()),
    "torch.mean": lambda w, x: w * (x * torch.rsqrt(torch.mean(x.pow(2), dim=-1, keepdim=True) + EPS)),
    "mean by axis": lambda w, x: w * (x * torch.rsqrt(torch.mean(x.pow(2), axis=2, keepdims=True) + EPS)),
    "sum over the count": lambda w, x: w * (x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / x.shape[-1] + EPS)),
    "eps first": lambda w, x: w * (x * torch.rsqrt(EPS + mean_square(x))),
    "factor first": lambda w, x: w * (torch.rsqrt(mean_square(x) + EPS) * x),
    "weight last": lambda w, x: (x * torch.rsqrt(mean_square(x) + EPS)) * w,
    "functions": lambda w, x: torch.mul(w, torch.mul(x, torch.rsqrt(torch.add(mean_square(x), EPS)))),
    "methods": lambda w, x: x.mul(mean_square(x).add(EPS).rsqrt()).mul(w),
    "keywords": lambda w, x: torch.mul(input=w, other=x.mul(other=torch.rsqrt(input=mean_square(x) + EPS))),
    "F.rms_norm": lambda w, x: F.rms_norm(x, (HIDDEN,), w, EPS),
    "F.rms_norm by keywords": lambda w, x: F.rms_norm(input=x, normalized_shape=[HIDDEN], weight=w, eps=EPS),
    "offset": lambda w, x: (x * torch.rsqrt(mean_square(x) + EPS)) * (1.0 + w.float()),
    "offset, int one": lambda w, x: (x * torch.rsqrt(mean_square(x) + EPS)) * (w + 1),
    "casts to its own dtype": lambda w, x: (
        w.float() * (x.float() * torch.rsqrt(mean_square(x.float()) + EPS)).to(x.dtype)
    ),
    "eps of another value": lambda w, x: w * (x * torch.rsqrt(mean_square(x) + 0.3)),
    "eps an int": lambda w, x: w * (x * torch.rsqrt(mean_square(x) + 1)),
    "centred input": lambda w, x: (lambda c: w * (c * torch.rsqrt(mean_square(c) + EPS)))(x - x.mean(-1, keepdim=True)),
}

MLPS: dict[str, Callable[[Any, Any], Any]] = {
    "up first": lambda m, h: F.linear(F.linear(h, m.up) * F.silu(F.linear(h, m.gate)), m.down),
    "torch.mul": lambda m, h: F.linear(torch.mul(F.linear(h, m.up), F.silu(F.linear(h, m.gate))), m.down),
    "x * sigmoid(x)": lambda m, h: (lambda g: F.linear((g * torch.sigmoid(g)) * F.linear(h, m.up), m.down))(
        F.linear(h, m.gate)
    ),
    "sigmoid(x) * x": lambda m, h: (lambda g: F.linear(F.linear(h, m.up) * (g.sigmoid() * g), m.down))(
        F.linear(h, m.gate)
    ),
    "h @ w.t()": lambda m, h: (F.silu(h @ m.gate.t()) * (h @ m.up.t())) @ m.down.t(),
    "h @ w.T": lambda m, h: (F.silu(h @ m.gate.T) * (h @ m.up.T)) @ m.down.T,
    "matmul, transpose": lambda m, h: torch.matmul(
        F.silu(torch.matmul(h, m.gate.transpose(0, 1))) * h.matmul(m.up.transpose(-1, -2)), m.down.permute(1, 0)
    ),
    "gelu": lambda m, h: F.linear(F.gelu(F.linear(h, m.gate)) * F.linear(h, m.up), m.down),
    "gelu_tanh": lambda m, h: F.linear(F.gelu(F.linear(h, m.gate), approximate="tanh") * F.linear(h, m.up), m.down),
    "relu": lambda m, h: F.linear(F.linear(h, m.gate).relu() * F.linear(h, m.up), m.down),
    "chunk": lambda m, h: (lambda t: F.linear(F.silu(t[0]) * t[1], m.down))(F.linear(h, m.gate_up).chunk(2, dim=-1)),
    "chunk, up first": lambda m, h: (lambda t: F.linear(t[0] * F.silu(t[1]), m.down))(
        torch.chunk(F.linear(h, m.gate_up), 2, dim=-1)
    ),
    "split": lambda m, h: (lambda t: F.linear(F.silu(t[0]) * t[1], m.down))(F.linear(h, m.gate_up).split(INTER, -1)),
    "split into sizes": lambda m, h: (lambda t: F.linear(t[0] * F.silu(t[1]), m.down))(
        torch.split(F.linear(h, m.gate_up), [INTER, INTER], dim=-1)
    ),
    "slices": lambda m, h: (lambda t: F.linear(F.silu(t[..., :INTER]) * t[..., INTER:], m.down))(
        F.linear(h, m.gate_up)
    ),
    "slices, up first": lambda m, h: (lambda t: F.linear(F.silu(t[..., INTER:]) * t[..., :INTER], m.down))(
        F.linear(h, m.gate_up)
    ),
    "packed with bias": lambda m, h: (lambda t: F.linear(F.silu(t[0]) * t[1], m.down, m.down_bias))(
        F.linear(h, m.gate_up, m.gate_up_bias).chunk(2, -1)
    ),
    "all biases": lambda m, h: F.linear(
        F.silu(F.linear(h, m.gate, m.gate_bias)) * F.linear(h, m.up, m.up_bias), m.down, m.down_bias
    ),
    "gate and up tied": lambda m, h: F.linear(F.silu(F.linear(h, m.gate)) * F.linear(h, m.gate), m.down),
    "one projection twice": lambda m, h: (lambda g: F.linear(F.silu(g) * g, m.down))(F.linear(h, m.gate)),
    "no-op view and dropout": lambda m, h: F.linear(
        F.dropout(F.silu(F.linear(h.view(h.shape), m.gate)) * F.linear(h.contiguous(), m.up), 0.1, False), m.down
    ),
}

BODIES = {
    **{f"norm: {name}": by_norm(change) for name, change in NORMS.items()},
    **{f"mlp: {name}": by_mlp(change) for name, change in MLPS.items()},
}


@pytest.mark.parametrize("body", [pytest.param(b, id=name) for name, b in BODIES.items()])
def test_spelling_is_rewritten(body: Body) -> None:
    report = compiled(Net(body), rows())
    assert [s.outcome for s in report.sites] == ["rewritten"], str(report)


VARIANTS = [
    ("norm", "early", lambda m, x: plain(m, x)),
    (
        "norm",
        "late",
        lambda m, x: mlp(m, (m.weight * (x.float() * torch.rsqrt(mean_square(x.float()) + EPS))).to(x.dtype)),
    ),
    ("norm", "late", lambda m, x: mlp(m, F.rms_norm(x, (HIDDEN,), m.weight, EPS))),
    (
        "norm",
        "offset",
        lambda m, x: mlp(
            m, (x.float() * torch.rsqrt(mean_square(x.float()) + EPS) * (1.0 + m.weight.float())).to(x.dtype)
        ),
    ),
    ("act", "gelu", by_mlp(MLPS["gelu"])),
    ("act", "gelu_tanh", by_mlp(MLPS["gelu_tanh"])),
    ("act", "relu", by_mlp(MLPS["relu"])),
    ("proj", "packed", by_mlp(MLPS["chunk"])),
    ("proj", "packed_up_first", by_mlp(MLPS["slices, up first"])),
    ("proj", "separate", by_mlp(MLPS["all biases"])),
]


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize(("choice", "label", "body"), VARIANTS)
def test_variant_is_told_and_exact_in_low_precision(choice: str, label: str, body: Body, dtype: torch.dtype) -> None:
    """The plain kernel repeats eager's operations, so a wrong variant shows as a difference in the last place."""
    slack = 2e-2 if "rms_norm" in body.__code__.co_names else 0.0
    report = compiled(Net(body, dtype), rows(dtype=dtype), rtol=slack, atol=slack)
    assert [s.outcome for s in report.sites] == ["rewritten"], str(report)
    assert report.sites[0].variant[choice] == label


def test_in_fp32_the_first_of_coinciding_variants_is_reported() -> None:
    (_, _, late) = VARIANTS[1]
    assert sole(sites(Net(late), rows())).variant["norm"] == "early"


@pytest.mark.parametrize("dtype", LOW)
def test_fp32_norm_weight_in_a_low_precision_model(dtype: torch.dtype) -> None:
    (_, _, late) = VARIANTS[1]
    report = compiled(Net(late, dtype, norm_dtype=torch.float32), rows(dtype=dtype), rtol=0.0, atol=0.0)
    assert sole(report.sites).outcome == "rewritten"
    assert sole(report.sites).variant["norm"] == "late"


def test_an_input_that_is_a_cast_itself() -> None:
    """The captured x may be the result of a cast that the pattern could take for its own."""
    report = compiled(Net(lambda m, x: plain(m, x.float())), rows(dtype=torch.bfloat16))
    assert sole(report.sites).outcome == "rewritten", str(report)


@pytest.mark.parametrize(
    "shape", [(HIDDEN,), (1, HIDDEN), (5, HIDDEN), (2, 3, HIDDEN), (2, 2, 3, HIDDEN), (HIDDEN, HIDDEN)]
)
def test_any_number_of_leading_dimensions(shape: tuple[int, ...]) -> None:
    assert sole(compiled(Net(plain), rows(*shape)).sites).outcome == "rewritten"


def test_dynamic_shapes_stay_one_graph() -> None:
    model, before = Net(plain), {id(r) for r in fxfuse.reports()}
    backend = fxfuse.Backend(**options(inner="eager"))
    fast = torch.compile(model, backend=backend, fullgraph=True)
    for size in (4, 7, 30):
        x = rows(2, size, HIDDEN)
        torch._dynamo.mark_dynamic(x, 1)
        torch.testing.assert_close(fast(x), model(x))
    made = [r for r in fxfuse.reports() if id(r) not in before]
    assert [dict(r.rewritten) for r in made] == [{PATTERN: 1}]


def test_eps_that_differs_between_instances() -> None:
    """The second eps makes it an input of the graph; the site is still found, and each call has its own."""
    torch._dynamo.reset()

    def body(m: Any, x: Any) -> Any:
        return mlp(m, m.weight * (x * torch.rsqrt(mean_square(x) + m.eps)))

    backend = fxfuse.Backend(**options(inner="eager"))
    for eps in (1e-6, 0.5, 2.0):
        model = Net(body, eps=eps)
        torch.testing.assert_close(torch.compile(model, backend=backend, fullgraph=True)(rows()), model(rows()))
        assert fxfuse.reports()[-1].rewritten == {PATTERN: 1}


class Modules(nn.Module):
    """The site out of ``torch.nn`` modules, the way most people write it."""

    def __init__(self, eps: float | None = EPS) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(HIDDEN, eps=eps)
        self.gate_proj, self.up_proj = nn.Linear(HIDDEN, INTER, bias=False), nn.Linear(HIDDEN, INTER, bias=False)
        self.down_proj = nn.Linear(INTER, HIDDEN, bias=False)
        self.act_fn, self.dropout = nn.SiLU(), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        return self.dropout(self.down_proj(self.act_fn(self.gate_proj(h)) * self.up_proj(h)))


def test_modules_of_torch() -> None:
    report = compiled(Modules().eval(), rows())
    site = sole(report.sites)
    assert site.outcome == "rewritten"
    assert {"norm", "gate_proj", "up_proj", "down_proj"} <= set(site.modules) | {""} or site.modules == ("",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_without_eps_takes_that_of_fp32(dtype: torch.dtype) -> None:
    """Of a small input, so that another eps would show; ``compiled`` compares with eager."""
    small = rows(dtype=dtype) * 1e-3
    site = sole(compiled(Modules(None).eval().to(dtype), small).sites)
    assert (site.outcome, site.variant["norm"]) == ("rewritten", "early" if dtype is torch.float32 else "late")


def test_rms_norm_without_eps_in_float64_is_left_alone() -> None:
    """There eps would be that of float64, and the norm is not computed in fp32."""
    site = sole(compiled(Modules(None).eval().double(), rows(dtype=torch.float64)).sites)
    assert (site.outcome, site.code) == ("missed", "ALTERNATIVES")


def test_a_dimension_added_before_the_site() -> None:
    report = compiled(Net(lambda m, x: plain(m, x[None])), rows())
    assert sole(report.sites).outcome == "rewritten", str(report)
