"""One pattern page, unchanged, is found n of n times at every level that a model is captured at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import HIDDEN, INTER, Net, rms, rows
from torch import nn
from view.aten_graphs import KINDS, Captured, graph_of

from fxfuse.match import find_sites
from fxfuse.match.finding import Found
from fxfuse.view import LeafKind
from fxfuse.view.leaves import innermost_roots, stack_path
from fxfuse_patterns.rms_norm_gated_mlp import rms_norm_gated_mlp

FP32, BF16 = torch.float32, torch.bfloat16
FUNCTIONAL = ("export decomposed", "post-grad, before", "post-grad, after")


class Norm(nn.Module):
    """Llama casts back, then scales; GPT-OSS scales, then casts back; Gemma scales by 1 + w."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.weight, self.order, self.eps = nn.Parameter(torch.rand(HIDDEN) + 0.5), order, 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.order == "early":
            return self.weight * h.to(x.dtype)
        if self.order == "late":
            return (self.weight * h).to(x.dtype)
        return (h * (1.0 + self.weight.float())).to(x.dtype)


class MLP(nn.Module):
    def __init__(self, act: Callable[..., torch.Tensor], bias: bool) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(HIDDEN, INTER, bias), nn.Linear(HIDDEN, INTER, bias)
        self.down, self.act = nn.Linear(INTER, HIDDEN, bias), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down: torch.Tensor = self.down(self.act(self.gate(x)) * self.up(x))
        return down


class Layer(nn.Module):
    def __init__(self, *settings: Any) -> None:
        super().__init__()
        self.norm, self.mlp = Norm(settings[0]), MLP(*settings[1:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x))


class Model(nn.Module):
    """Layers of several styles, each so often: one capture shows them all."""

    def __init__(self, *styles: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(*STYLES[style]) for style in styles)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


STYLES = {
    "llama": ("early", F.silu, False),
    "gemma": ("offset", tanh_gelu, False),
    "gpt_oss": ("late", F.silu, True),
    "exact gelu": ("late", F.gelu, True),
}
ACTS = {"llama": "silu", "gemma": "gelu_tanh", "gpt_oss": "silu", "exact gelu": "gelu"}


def model_of(styles: Sequence[str], dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(5)
    return Model(*styles).to(dtype).eval().requires_grad_(False)


def variant_of(style: str, dtype: torch.dtype) -> dict[str, str]:
    """In fp32 casts are none, so early and late are one function, and the first declared is named."""
    norm = STYLES[style][0]
    return {"norm": "early" if norm == "late" and dtype is FP32 else norm, "proj": "separate", "act": ACTS[style]}


def matched(captured: Captured) -> list[Found]:
    found = find_sites(captured.view(), rms_norm_gated_mlp)
    return [site for site in found if site.match is not None and site.reason is None]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_found_n_of_n_times(kind: str, dtype: torch.dtype, dynamic: bool) -> None:
    styles = [*STYLES, *STYLES]
    sites = matched(graph_of(kind, model_of(styles, dtype), (rows(dtype=dtype),), dynamic=dynamic))
    assert [site.variant for site in sites] == [variant_of(style, dtype) for style in styles]
    for number, site in enumerate(sites):
        paths = innermost_roots([stack_path(n) for n in site.nodes])
        assert {p.removeprefix(f"layers.{number}.").partition(".")[0] for p in paths} == {"norm", "mlp"}


@pytest.mark.parametrize("shape", [(6, HIDDEN), (1, 1, HIDDEN), (2, 2, 3, HIDDEN)], ids=str)
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
def test_rows_of_any_rank(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    for kind in ("export decomposed", "post-grad, before"):
        assert len(matched(graph_of(kind, model_of(["llama"], dtype), (rows(*shape, dtype=dtype),)))) == 1, kind


def test_a_residual_that_inductor_has_merged_into_the_down_projection() -> None:
    """On CPU its own passes make one addmm of a product of two dimensions and the sum behind it: none is left alone."""
    captured = graph_of("post-grad, after", model_of(["llama"], FP32), (rows(6, HIDDEN),))
    (site,) = find_sites(captured.view(), rms_norm_gated_mlp)
    assert site.reason is not None
    assert site.reason.code == "OP"


# --- one module, spelled by hand ------------------------------------------------------------------------------------

SQUARE = 8


def _net(body: Callable[..., Any], dtype: torch.dtype) -> Net:
    net = Net(body, dtype)
    torch.manual_seed(7)
    net.square, net.square_up = (nn.Parameter(torch.randn(SQUARE, SQUARE).to(dtype), False) for _ in range(2))
    return net


def _found(bodies: dict[str, Callable[..., Any]], kind: str, dtype: torch.dtype) -> set[str]:
    """The names of the bodies that are sites. All are one graph; each has an input of its own."""
    net = _net(lambda m, *xs: [body(m, x) for body, x in zip(bodies.values(), xs, strict=True)], dtype)
    captured = graph_of(kind, net, [rows(dtype=dtype, seed=seed) for seed in range(len(bodies))])
    assert captured.leaves is not None
    inputs = [leaf.position for leaf in captured.leaves if leaf.kind is LeafKind.INPUT]
    by_position = dict(zip(inputs, bodies, strict=True))
    return {by_position[site.match.x.leaf.position] for site in matched(captured) if site.match is not None}


def mlp(m: Net, h: torch.Tensor, act: Callable[..., torch.Tensor] = F.silu) -> torch.Tensor:
    return F.linear(act(F.linear(h, m.gate)) * F.linear(h, m.up), m.down)


def rounded_silu(g: torch.Tensor) -> torch.Tensor:
    return g / (1 + torch.exp(-g))


def late_cast(m: Net, x: torch.Tensor) -> torch.Tensor:
    """The normalised rows are rounded, and the scale's product in fp32 is rounded again."""
    h = x.float()
    h = (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype).float()
    return (m.weight.float() * h).to(x.dtype)


def shared_rows(m: Net, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Gate and up read one reshape; so does what is computed besides, where a test asks for it."""
    flat = rms(m, x).reshape(-1, HIDDEN)
    gate, up = F.linear(flat, m.gate).reshape(2, 3, INTER), F.linear(flat, m.up).reshape(2, 3, INTER)
    return F.linear((F.silu(gate) * up).reshape(-1, INTER), m.down).reshape(2, 3, HIDDEN), flat


def rows_of_input(m: Net, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    flat = x.reshape(-1, HIDDEN)
    h = rms(m, flat.reshape(2, 3, HIDDEN))
    return mlp(m, h), F.linear(flat, m.router)


def biased_after(m: Net, x: torch.Tensor) -> torch.Tensor:
    h = rms(m, x)
    gate = torch.matmul(h, m.gate.t()) + m.gate_bias
    return F.linear(F.silu(gate) * F.linear(h, m.up, m.up_bias), m.down)


FOUND: dict[str, Callable[..., Any]] = {
    "as Llama spells it": lambda m, x: mlp(m, rms(m, x)),
    "another eps": lambda m, x: mlp(m, rms(m, x, 1e-5)),
    "rows shared by gate and up": lambda m, x: shared_rows(m, x)[0],
    "rows of the input read outside": rows_of_input,
    "a weight's transpose read outside": lambda m, x: (mlp(m, rms(m, x)), x.mean() * m.gate.t()),
    "packed": lambda m, x: F.linear(
        (lambda both: F.silu(both[..., :INTER]) * both[..., INTER:])(F.linear(rms(m, x), m.gate_up)), m.down
    ),
    "square weights": lambda m, x: (lambda h: F.linear(F.silu(h @ m.square.t()) * (h @ m.square_up.t()), m.square))(
        rms(m, x)
    ),
}

NOT_FOUND: dict[str, Callable[..., Any]] = {
    "another constant": lambda m, x: mlp(m, rms(m, x), lambda g: g / (2 + torch.exp(-g))),
    "a weight that is not transposed": lambda m, x: (
        lambda h: F.linear(F.silu(h @ m.square) * (h @ m.square_up.t()), m.square)
    )(rms(m, x)),
    "the other axis": lambda m, x: mlp(m, m.weight * F.normalize(x, dim=-2)),
    "rows read outside": shared_rows,
    "a projection read outside": lambda m, x: (lambda h: (mlp(m, h), F.linear(h, m.router)))(rms(m, x)),
    "gate of other rows": lambda m, x: (
        lambda h: F.linear(
            F.silu(F.linear(h.transpose(0, 1).reshape(2, 3, HIDDEN), m.gate)) * F.linear(h, m.up), m.down
        )
    )(rms(m, x)),
}

NOT_FOUND_IN_BF16: dict[str, Callable[..., Any]] = {
    "a silu that rounds between its steps": lambda m, x: mlp(m, rms(m, x), rounded_silu),
    "a sigmoid rounded before its product": lambda m, x: mlp(m, rms(m, x), lambda g: g * torch.sigmoid(g)),
    "a silu that is not rounded": lambda m, x: (
        lambda h: F.linear((F.silu(F.linear(h, m.gate).float()) * F.linear(h, m.up)).to(x.dtype), m.down)
    )(rms(m, x)),
    "statistics in bf16": lambda m, x: mlp(m, m.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))),
    "rounded twice": lambda m, x: mlp(m, late_cast(m, x)),
    "a bias added after rounding": biased_after,
}


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["export", *FUNCTIONAL])
def test_spellings_and_their_mutants(kind: str, dtype: torch.dtype) -> None:
    unfound = NOT_FOUND | (NOT_FOUND_IN_BF16 if dtype is BF16 else {})
    assert _found(FOUND | unfound, kind, dtype) == set(FOUND)


def test_a_shared_view_names_what_its_reader_gets() -> None:
    captured = graph_of("post-grad, before", _net(shared_rows, FP32), (rows(),))
    (site,) = find_sites(captured.view(), rms_norm_gated_mlp)
    assert site.reason is not None
    assert site.reason.code == "GRAPH_OUTPUT"
    assert str(site.reason.operand).startswith("mul")
