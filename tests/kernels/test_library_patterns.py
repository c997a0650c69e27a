"""The patterns that users name: what they find in a small decoder layer, what they leave, and their plain kernels."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxfuse
from fxfuse import library

HIDDEN, INNER = 16, 24
EXPECTED = {
    "rms_norm": 3,
    "add_rms_norm": 2,
    "rms_norm_qkv": 2,  # gate and up are siblings behind a norm, too
    "gated_mlp": 1,
    "rms_norm_gated_mlp": 1,
    "rms_norm_gated_mlp_add": 1,
}


class Norm(nn.Module):
    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(HIDDEN) * 0.2 + 1)
        self.late = late

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (self.weight * h).to(x.dtype) if self.late else self.weight * h.to(x.dtype)


class Layer(nn.Module):
    """Pre-norm: attention (here its projections, of unequal widths, and a product), an MLP, and a last norm."""

    def __init__(self, *, bias: bool = False, late: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.before, self.between, self.after = (Norm(late) for _ in range(3))
        self.q, self.k, self.v = (nn.Linear(HIDDEN, size, bias=bias) for size in (HIDDEN, 8, 8))
        self.o = nn.Linear(HIDDEN + 16, HIDDEN, bias=False)
        self.gate, self.up = (nn.Linear(HIDDEN, INNER, bias=bias) for _ in range(2))
        self.down = nn.Linear(INNER, HIDDEN, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.before(x)
        x = x + self.o(torch.cat([self.q(h).sin(), self.k(h), self.v(h)], -1))
        h = self.between(x)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return self.after(x)


def compiled(model: nn.Module, x: torch.Tensor, **options: Any) -> tuple[torch.Tensor, Any]:
    torch._dynamo.reset()
    backend = fxfuse.Backend(inner="eager", on_error="raise", **options)
    out = torch.compile(model, backend=backend, fullgraph=True)(x)
    return out, fxfuse.reports()[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", [{}, {"bias": True, "late": True}])
@pytest.mark.parametrize("name", EXPECTED)
def test_named_it_is_found_rewritten_and_bit_equal(name, form, dtype):
    model, x = Layer(**form).to(dtype), torch.randn(2, 3, HIDDEN).to(dtype)
    with torch.no_grad():
        out, report = compiled(model, x, patterns=[name], kernels={name: "plain"})
        assert report.rewritten == {name: EXPECTED[name]}
        assert torch.equal(out, model(x))


@pytest.mark.parametrize("name", EXPECTED)
def test_gradients_of_the_plain_kernel(name):
    model, x = Layer(bias=True), torch.randn(4, HIDDEN, requires_grad=True)
    out, report = compiled(model, x, patterns=[name], kernels={name: "plain"})
    assert report.rewritten == {name: EXPECTED[name]}
    out.square().sum().backward()
    got = [x.grad, *(p.grad for p in model.parameters())]
    x.grad = None
    model.zero_grad()
    model(x).square().sum().backward()
    torch.testing.assert_close(got, [x.grad, *(p.grad for p in model.parameters())])


@pytest.mark.parametrize("name", ["rms_norm_gated_mlp", "gated_mlp", "rms_norm_qkv"])
@pytest.mark.parametrize(("bias", "kernel"), [(False, "stacked"), (True, "stacked_biased")])
def test_stacked_weights(name, bias, kernel):
    model, x = Layer(bias=bias).requires_grad_(False), torch.randn(4, HIDDEN)
    out, report = compiled(model, x, patterns=[name], kernels={name: kernel}, weights="inline")
    assert Counter(s.kernel for s in report.sites if s.outcome == "rewritten") == {kernel: EXPECTED[name]}
    torch.testing.assert_close(out, model(x))


def test_only_the_declared_ones_are_active_by_default():
    assert [pattern.name for pattern in library.defaults()] == ["rms_norm_gated_mlp"]
    with torch.no_grad():
        _, report = compiled(Layer(), torch.randn(2, HIDDEN))
    assert report.matched == {"rms_norm_gated_mlp": 1}
    with torch.no_grad():
        _, report = compiled(Layer(), torch.randn(2, HIDDEN), add=["rms_norm_qkv", "rms_norm"])
    assert report.matched == {"rms_norm_gated_mlp": 1, "rms_norm_qkv": 1, "rms_norm": 1}


def test_sites_that_overlap_are_chosen_for_the_best_total():
    with torch.no_grad():
        _, report = compiled(Layer(), torch.randn(2, HIDDEN), patterns=[n for n in EXPECTED if n != "add_rms_norm"])
        assert report.rewritten == {"rms_norm_qkv": 1, "rms_norm_gated_mlp_add": 1, "rms_norm": 1}
        _, report = compiled(Layer(), torch.randn(2, HIDDEN), patterns=list(EXPECTED))
        assert report.rewritten == {"rms_norm_qkv": 1, "add_rms_norm": 2, "gated_mlp": 1}


class Swapped(Layer):
    """The norm reads what was added, and not the sum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.q(x)
        return (x + y) * self.before(y)


class Subtracted(Layer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x - self.q(x)
        return x * self.before(x)


class Read(Layer):
    """Something else reads the norm's output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.before(x)
        return h.sin().sum() + self.q(h).sum() * self.k(h).sum()


class Four(Layer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.before(x)
        return self.q(h).sum() * self.k(h).sum() * self.v(h).sum() * self.gate(h).sum()


class Single(Layer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q(self.before(x))


class Ungated(Layer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) + self.up(x))


class HalfBiased(Layer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * F.linear(x, self.up.weight))


class Centred(Layer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x - x.mean(-1, keepdim=True)
        return self.before.weight * (x * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("add_rms_norm", Swapped), ("add_rms_norm", Subtracted), ("rms_norm_qkv", Read), ("rms_norm_qkv", Four),
        ("rms_norm_qkv", Single), ("gated_mlp", Ungated), ("gated_mlp", HalfBiased), ("rms_norm", Centred),
    ],
)  # fmt: skip
def test_what_is_another_function_is_left(name, model):
    layer, x = model(bias=True), torch.randn(2, HIDDEN)
    with torch.no_grad():
        out, report = compiled(layer, x, patterns=[name], on_miss="silent")
        assert not report.matched
        assert torch.equal(out, layer(x))
