"""What a CPU gets beyond plain PyTorch: chosen where it should be, within the error contract, and live."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxfuse
from fxfuse import params
from fxfuse.kernels import cpu, panels

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


needs_panels = pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="needs AVX-512")


@pytest.fixture
def no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_multiplies_bf16", lambda: False)


@pytest.mark.parametrize(
    ("kernel", "dtype", "weights", "extra_memory"),
    [
        ("cpu_packed", torch.float32, "copy", 1.0),
        ("cpu_packed_fp32", torch.bfloat16, "copy", 2.0),
        pytest.param("cpu_kept_panels", torch.float32, "copy", 1.0, marks=needs_panels),
        pytest.param("cpu_panels", torch.float32, "separate", 0.0, marks=needs_panels),
        pytest.param("cpu_panels_fp32", torch.bfloat16, "separate", 0.0, marks=needs_panels),
        pytest.param("cpu_panels_fp32", torch.float16, "separate", 0.0, marks=needs_panels),
    ],
)
@pytest.mark.parametrize("what", PATTERNS)
@pytest.mark.usefixtures("no_bf16")
@torch.no_grad()
def test_within_the_contract_and_live(
    what: str, kernel: str, dtype: torch.dtype, weights: str, extra_memory: float
) -> None:
    for bias in (False, True):
        torch._dynamo.reset()
        model = Net(what, dtype, bias=bias)
        fast = compiled(model, what, extra_memory=extra_memory, kernels={what: kernel})
        within_contract(model, fast, (2, 8), dtype)
        assert (site().kernel, site().weights) == (kernel, weights)
        model.gate.weight.data.mul_(-3)
        within_contract(model, fast, (2, 8), dtype)


@pytest.mark.parametrize("what", PATTERNS)
@pytest.mark.usefixtures("no_bf16")
@torch.no_grad()
def test_wide_is_within_the_contract(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "panels_unavailable", lambda: "needs AVX-512")
    for rows, bias in itertools.product(((1, 1), (5, 8)), (False, True)):
        torch._dynamo.reset()
        model = Net(what, torch.bfloat16, bias=bias)
        within_contract(model, compiled(model, what), rows, torch.bfloat16)
        assert (site().kernel, site().weights) == ("cpu_fp32_gemm", "separate")


@needs_panels
@pytest.mark.parametrize(
    ("native", "dtype", "rows", "granted", "kernel"),
    [
        (False, torch.float32, 1, 1.0, "plain"),
        (False, torch.float32, 2, 1.0, "cpu_kept_panels"),
        (True, torch.float32, 64, 1.0, "cpu_kept_panels"),
        (False, torch.float32, 65, 1.0, "plain"),
        (False, torch.float32, 16, 0.9, "plain"),
        (False, torch.bfloat16, 1, 0.0, "cpu_panels_fp32"),
        (False, torch.bfloat16, 16, 2.0, "cpu_panels_fp32"),
        (False, torch.float16, 300, 0.0, "cpu_panels_fp32"),
        (True, torch.bfloat16, 16, 2.0, "plain"),
        (True, torch.bfloat16, 1, 0.0, "plain"),
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
    with pytest.raises(fxfuse.OptionError, match=r"needs weights \(multiple of 64, multiple of 16\); .*\(100, 64\)"):
        compiled(model, "linear", extra_memory=9.0, kernels={"linear": "cpu_packed"})(x)


@needs_panels
@torch.no_grad()
def test_panels_of_every_form() -> None:
    """Odd sizes, edges of tiles and panels, strides, threads; what lies beside the operands is never touched."""
    threads = torch.get_num_threads()
    for (m, n, k), dtype in itertools.product(
        [
            (1, 35, 577),
            (1, 7, 3),
            (2, 1, 1),
            (3, 31, 385),
            (14, 32, 192),
            (15, 33, 193),
            (29, 96, 16),
            (4, 5, 0),
            (0, 3, 4),
        ],
        panels.TYPES,
    ):
        torch.set_num_threads(1 + m % 2)
        storage = torch.full((n + 2, k + 3), torch.nan, dtype=dtype)
        weight, x, bias = storage[1 : n + 1, 1 : k + 1].copy_(torch.randn(n, k)), torch.randn(m, k), torch.randn(n)
        beside = torch.full((m * k + 2,), torch.nan)
        x = beside[1 : m * k + 1].view(m, k).copy_(x)
        exact = F.linear(x.double(), weight.double(), bias.double())
        whole = params.panels("w")(weight.float())
        assert torch.equal(params.panels("w").inverse(whole, [(n, k)])[0], weight.float())
        for found in (
            panels.panel_linear(x, weight, bias), panels.kept_panel_linear(x, whole, bias, n),
            panels.panel_linear(x.t().contiguous().t(), weight.t().contiguous().t(), bias),
        ):  # fmt: skip
            torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=1e-5)
    torch.set_num_threads(threads)
    x, weight = torch.randn(5, 64), torch.randn(40, 64)
    weight[7, 3] = torch.inf
    x[2, 1] = torch.nan
    torch.testing.assert_close(panels.panel_linear(x, weight, None), F.linear(x, weight), equal_nan=True)


@needs_panels
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.ones(2, 4).double(), torch.ones(3, 4), None), r"input torch.float64 \(2, 4\); .* torch.float32"),
        ((torch.ones(2, 5), torch.ones(3, 4), None), r"input torch.float32 \(2, 5\); it must be .* \(..., 4\)"),
        ((torch.ones(2, 4), torch.ones(3, 4).double(), None), "a weight torch.float64"),
        ((torch.ones(2, 4), torch.ones(3, 4), torch.ones(4)), r"a bias torch.float32 \(4,\)"),
    ],
    ids=["input's dtype", "input's size", "weight's dtype", "bias' size"],
)
def test_what_panels_refuse(args: tuple[Tensor, Tensor, Tensor | None], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        panels.panel_linear(*args)
    with pytest.raises(RuntimeError, match=r"given panels torch.float32 \(1, 4, 32\); they must be .*\(2, 4, 32\)"):
        panels.kept_panel_linear(torch.ones(2, 4), torch.ones(1, 4, 32), None, 33)


@needs_panels
def test_panels_round_less_than_eager() -> None:
    for k in (576, 1536):
        x, weight = torch.randn(16, k), torch.randn(640, k)
        exact = F.linear(x.double(), weight.double())
        ours, eager = (found.double().sub(exact).pow(2).mean() for found in (
            panels.panel_linear(x, weight, None), F.linear(x, weight)
        ))  # fmt: skip
        assert ours <= 1.1 * eager


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


@needs_panels
@torch.no_grad()
def test_kept_panels_through_inductor_are_live_too() -> None:
    model, x = Net("rms_norm_gated_mlp", torch.float32, bias=True), torch.randn(16, HIDDEN)
    fast = compiled(model, "rms_norm_gated_mlp", extra_memory=1.0, inner="inductor")
    for change in (
        lambda w: None, lambda w: w.mul_(2), lambda w: w.data.neg_(), lambda w: setattr(w, "data", torch.randn_like(w)),
    ):  # fmt: skip
        change(model.up.weight)
        torch.testing.assert_close(fast(x), model(x), atol=1e-5, rtol=1e-5)
    assert (site().kernel, site().weights) == ("cpu_kept_panels", "copy")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
