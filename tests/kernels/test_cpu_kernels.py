"""What a CPU gets beyond plain PyTorch: chosen where it should be, within the error contract, and live."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxfuse
from fxfuse.kernels import cpu

HIDDEN, INNER, EPS = 64, 128, 1e-6
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 1e-3}
PATTERNS = ("rms_norm_gated_mlp", "gated_mlp", "rms_norm_qkv", "linear")


class Net(nn.Module):
    """One site of each pattern, by itself; ``exact`` computes the same in float64, without the casts to fp32."""

    def __init__(self, what: str, dtype: torch.dtype, *, bias: bool, norm: str = "early") -> None:
        super().__init__()
        self.what, self.norm = what, norm
        self.scale = nn.Parameter((torch.rand(HIDDEN) + 0.5).to(dtype))
        self.gate = nn.Linear(HIDDEN, INNER, bias=bias, dtype=dtype)
        self.up = nn.Linear(HIDDEN, INNER, bias=bias, dtype=dtype)
        self.down = nn.Linear(INNER, HIDDEN, bias=bias, dtype=dtype)
        self.third = nn.Linear(HIDDEN, 2 * INNER, bias=bias, dtype=dtype)

    def forward(self, x: Tensor) -> Any:
        h = self._normed(x) if self.what.startswith("rms_norm") else x
        if self.what == "linear":
            return self.gate(h)
        if self.what == "rms_norm_qkv":
            return self.gate(h), self.up(h), self.third(h)
        return self.down(F.silu(self.gate(h)) * self.up(h))

    def _normed(self, x: Tensor) -> Tensor:
        h = x if x.dtype is torch.float64 else x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)
        if self.norm == "offset":
            return (h * (1.0 + self.scale.to(h.dtype))).to(x.dtype)
        return self.scale * h.to(x.dtype)


def error(found: Any, exact: Any) -> tuple[float, float]:
    pairs = zip(*((t,) if isinstance(t, Tensor) else t for t in (found, exact)), strict=True)
    worst = [0.0, 0.0]
    for f, e in pairs:
        d = (f.double() - e).abs()
        rms = d.pow(2).mean().sqrt() / e.pow(2).mean().sqrt()
        worst = [max(worst[0], (d.max() / e.abs().max()).item()), max(worst[1], rms.item())]
    return worst[0], worst[1]


def compiled(model: nn.Module, what: str, **options: Any) -> Any:
    backend = fxfuse.Backend(**{"inner": "eager", "on_error": "raise", "patterns": [what], **options})
    return torch.compile(model, backend=backend, fullgraph=True, dynamic=False)


def site() -> fxfuse.Site:
    (found,) = (s for s in fxfuse.reports()[-1].sites if s.outcome == "rewritten")
    return found


def within_contract(model: Net, fast: Any, rows: tuple[int, ...], dtype: torch.dtype) -> None:
    """Over five seeds, with channels a hundred times larger: at most twice eager's error, in maximum and in RMS."""
    ours, eager = [0.0, 0.0], [0.0, 0.0]
    wide = Net(model.what, torch.float64, bias=model.gate.bias is not None, norm=model.norm)
    wide.load_state_dict(model.state_dict())
    for seed in range(5):
        x = torch.randn(*rows, HIDDEN, generator=torch.Generator().manual_seed(seed)).to(dtype)
        x[..., :: HIDDEN // 3] *= 100
        exact = wide(x.double())
        ours = [max(a, b) for a, b in zip(ours, error(fast(x), exact), strict=True)]
        eager = [max(a, b) for a, b in zip(eager, error(model(x), exact), strict=True)]
    for mine, theirs in zip(ours, eager, strict=True):
        assert mine <= 2 * theirs + FLOOR[dtype]


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize("what", PATTERNS)
@torch.no_grad()
def test_packed_is_within_the_contract_and_live(what: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_multiplies_bf16", lambda: False)
    low = dtype is not torch.float32
    for bias in (False, True):
        torch._dynamo.reset()
        model = Net(what, dtype, bias=bias)
        fast = compiled(model, what, extra_memory=2.0 if low else 1.0)
        within_contract(model, fast, (2, 8), dtype)
        assert (site().kernel, site().weights) == ("cpu_packed_fp32" if low else "cpu_packed", "copy")
        model.gate.weight.data.mul_(-3)
        within_contract(model, fast, (2, 8), dtype)


@pytest.mark.parametrize("what", PATTERNS)
@torch.no_grad()
def test_wide_is_within_the_contract(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_multiplies_bf16", lambda: False)
    for rows, bias in itertools.product(((1, 1), (5, 8)), (False, True)):
        torch._dynamo.reset()
        model = Net(what, torch.bfloat16, bias=bias)
        within_contract(model, compiled(model, what), rows, torch.bfloat16)
        assert (site().kernel, site().weights) == ("cpu_fp32_gemm", "separate")


@pytest.mark.parametrize(
    ("native", "dtype", "rows", "granted", "kernel"),
    [
        (False, torch.float32, 15, 1.0, "plain"),
        (False, torch.float32, 16, 1.0, "cpu_packed"),
        (True, torch.float32, 64, 1.0, "cpu_packed"),
        (False, torch.float32, 65, 1.0, "plain"),
        (False, torch.float32, 16, 0.0, "plain"),
        (False, torch.bfloat16, 16, 2.0, "cpu_packed_fp32"),
        (False, torch.bfloat16, 64, 1.0, "cpu_fp32_gemm"),
        (True, torch.bfloat16, 16, 2.0, "plain"),
        (True, torch.bfloat16, 1, 0.0, "plain"),
        (False, torch.bfloat16, 16, 0.0, "plain"),
    ],
)
@torch.no_grad()
def test_which_kernel_a_linear_gets(
    native: bool, dtype: torch.dtype, rows: int, granted: float, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "cpu_multiplies_bf16", lambda: native)
    model, x = Net("linear", dtype, bias=True), torch.randn(rows, HIDDEN, dtype=dtype)
    fast = compiled(model, "linear", extra_memory=granted)
    torch.testing.assert_close(fast(x), model(x), atol=2e-2 if dtype is torch.bfloat16 else 1e-5, rtol=1e-2)
    assert site().kernel == kernel


@torch.no_grad()
def test_weights_that_do_not_fill_the_blocks_are_not_packed() -> None:
    model, x = nn.Linear(HIDDEN, 100), torch.randn(16, HIDDEN)
    torch.testing.assert_close(compiled(model, "linear", extra_memory=9.0)(x), model(x))
    assert (site().kernel, site().weights) == ("plain", "separate")


def test_a_site_that_needs_a_gradient_is_not_packed() -> None:
    model, x = Net("linear", torch.float32, bias=True), torch.randn(16, HIDDEN)
    compiled(model, "linear", extra_memory=9.0)(x).sum().backward()
    assert site().kernel == "plain"
    assert model.gate.weight.grad is not None


@pytest.mark.parametrize("placement", ["copy", "inline"])
@pytest.mark.parametrize(("norm", "kernel"), [("early", "folded"), ("offset", "folded_offset")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_folded_norm_scales(norm: str, kernel: str, placement: str, dtype: torch.dtype) -> None:
    model = Net("rms_norm_qkv", dtype, bias=False, norm=norm)
    options = {"kernels": {"rms_norm_qkv": kernel}, "weights": placement, "extra_memory": 1.1}
    fast = compiled(model, "rms_norm_qkv", **options)
    within_contract(model, fast, (3,), dtype)
    assert (site().kernel, site().weights) == (kernel, placement)
    model.scale.data.mul_(2)  # the scale is a source like the weights
    within_contract(model, fast, (3,), dtype)


@torch.no_grad()
def test_packed_weights_through_inductor_are_live_too() -> None:
    model, x = Net("rms_norm_gated_mlp", torch.float32, bias=True), torch.randn(16, HIDDEN)
    fast = compiled(model, "rms_norm_gated_mlp", extra_memory=1.0, inner="inductor")
    for change in (
        lambda w: None, lambda w: w.mul_(2), lambda w: w.data.neg_(), lambda w: setattr(w, "data", torch.randn_like(w)),
    ):  # fmt: skip
        change(model.up.weight)
        torch.testing.assert_close(fast(x), model(x), atol=1e-5, rtol=1e-5)
    assert (site().kernel, site().weights) == ("cpu_packed", "copy")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
