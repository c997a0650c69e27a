"""The PyTorch kernels of the headline pattern: within the error contract, in every variant, and choosing by CPU."""

from __future__ import annotations

import itertools

import pytest
import torch

import fxfuse
from fxfuse.kernels import cpu, gated_mlp, kernels_for
from fxfuse_patterns.rms_norm_gated_mlp import rms_norm_gated_mlp

HIDDEN, INTERMEDIATE, OUT, EPS = 64, 88, 48, 1e-6
VARIANTS = [
    {"norm": norm, "proj": proj, "act": act}
    for norm, (proj, act) in itertools.product(
        ("early", "late", "offset"),
        (("separate", "silu"), ("packed", "gelu"), ("packed_up_first", "gelu_tanh"), ("separate", "relu")),
    )
]
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 1e-3}


def operands(dtype: torch.dtype, rows: int, seed: int, *, biases: bool, variant: dict[str, str]) -> dict:
    """Captures of one site, with a few channels of the input a hundred times larger."""
    g = torch.Generator().manual_seed(seed)

    def tensor(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=g) * scale).to(dtype)

    x = tensor(rows, HIDDEN)
    x[:, :: HIDDEN // 3] *= 100
    made = {"x": x, "weight": tensor(HIDDEN, scale=0.3), "eps": EPS, "down": tensor(OUT, INTERMEDIATE, scale=0.1)}
    if variant["proj"] == "separate":
        made |= {"gate": tensor(INTERMEDIATE, HIDDEN, scale=0.1), "up": tensor(INTERMEDIATE, HIDDEN, scale=0.1)}
        if biases:
            made |= {"gate_bias": tensor(INTERMEDIATE), "up_bias": tensor(INTERMEDIATE)}
    else:
        made["gate_up"] = tensor(2 * INTERMEDIATE, HIDDEN, scale=0.1)
        if biases:
            made["gate_up_bias"] = tensor(2 * INTERMEDIATE)
    if biases:
        made["down_bias"] = tensor(OUT)
    return made


def call(name: str, captures: dict, variant: dict[str, str]) -> torch.Tensor:
    kernel = kernels_for(rms_norm_gated_mlp.name)[name]
    values = {**dict.fromkeys(rms_norm_gated_mlp.captures), **captures, **variant}
    for operand, transform in kernel.derive:
        values[operand] = transform(*(captures[s] for s in transform.sources))
    return kernel.function(**{p: values[p] for p in kernel.parameters})


def wide(captures: dict) -> dict:
    return {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in captures.items()}


def exact_norm(captures: dict, variant: dict[str, str]) -> torch.Tensor:
    """The reference in float64, without its casts to fp32."""
    c = wide(captures)
    h = c["x"] * torch.rsqrt(c["x"].pow(2).mean(-1, keepdim=True) + EPS)
    h = h * (1 + c["weight"]) if variant["norm"] == "offset" else h * c["weight"]
    if variant["proj"] == "separate":
        g, u = h @ c["gate"].T, h @ c["up"].T
        g, u = g + c.get("gate_bias", 0), u + c.get("up_bias", 0)
    else:
        g, u = (h @ c["gate_up"].T + c.get("gate_up_bias", 0)).chunk(2, -1)
        if variant["proj"] == "packed_up_first":
            g, u = u, g
    return (gated_mlp.ACTIVATIONS[variant["act"]](g) * u) @ c["down"].T + c.get("down_bias", 0)


def error(out: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    """Largest and root-mean-square error, relative to the largest and the root-mean-square value."""
    difference = (out.double() - exact).abs()
    rms = difference.pow(2).mean().sqrt() / exact.pow(2).mean().sqrt()
    return (difference.max() / exact.abs().max()).item(), rms.item()


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("name", ["plain", "stacked", "stacked_biased", "cpu_fp32_gemm"])
def test_error_is_at_most_twice_that_of_eager(name: str, rows: int, dtype: torch.dtype) -> None:
    tried = 0
    for (i, variant), biases in itertools.product(enumerate(VARIANTS), (False, True)):
        packed = variant["proj"] != "separate"
        if name.startswith("stacked") and (packed or biases != (name == "stacked_biased")):
            continue
        if name == "cpu_fp32_gemm" and dtype is torch.float32:
            continue
        worst = [0.0, 0.0]
        allowed = [0.0, 0.0]
        for seed in range(5):
            captures = operands(dtype, rows, 100 * i + seed, biases=biases, variant=variant)
            exact = exact_norm(captures, variant)
            ours = error(call(name, captures, variant), exact)
            eager = error(rms_norm_gated_mlp.reference(captures, variant), exact)
            worst = [max(a, b) for a, b in zip(worst, ours, strict=True)]
            allowed = [max(a, 2 * b + FLOOR[dtype]) for a, b in zip(allowed, eager, strict=True)]
        assert worst[0] <= allowed[0], (variant, biases, worst, allowed)
        assert worst[1] <= allowed[1], (variant, biases, worst, allowed)
        tried += 1
    assert tried or (name == "cpu_fp32_gemm" and dtype is torch.float32)


def test_a_wrong_variant_is_far_outside_the_contract() -> None:
    variant = {"norm": "early", "proj": "separate", "act": "silu"}
    captures = operands(torch.bfloat16, 5, 0, biases=False, variant=variant)
    exact = exact_norm(captures, variant)
    eager = error(rms_norm_gated_mlp.reference(captures, variant), exact)
    for wrong in ({"norm": "offset"}, {"act": "relu"}, {"act": "gelu"}):
        assert error(call("plain", captures, {**variant, **wrong}), exact)[0] > 2 * eager[0] + 1e-3


def test_plain_is_the_reference_to_the_bit() -> None:
    for i, variant in enumerate(VARIANTS):
        captures = operands(torch.bfloat16, 5, i, biases=True, variant=variant)
        assert torch.equal(call("plain", captures, variant), rms_norm_gated_mlp.reference(captures, variant))


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(HIDDEN))
        self.gate = torch.nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
        self.up = torch.nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
        self.down = torch.nn.Linear(INTERMEDIATE, HIDDEN, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.float()
        h = self.scale * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)
        return self.down(torch.nn.functional.silu(self.gate(h)) * self.up(h))


@pytest.mark.parametrize(
    ("native", "dtype", "rows", "kernel"),
    [
        (False, torch.bfloat16, 64, "cpu_fp32_gemm"),
        (False, torch.bfloat16, 1, "cpu_fp32_gemm"),
        (False, torch.bfloat16, 16, "plain"),
        (False, torch.float32, 64, "plain"),
        (True, torch.bfloat16, 64, "plain"),
    ],
)
@torch.no_grad()
def test_the_kernel_follows_cpu_dtype_and_rows(
    native: bool, dtype: torch.dtype, rows: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "cpu_multiplies_bf16", lambda: native)
    monkeypatch.setattr(cpu, "panels_unavailable", lambda: "needs AVX-512")
    block, x = Block().to(dtype), torch.randn(rows, HIDDEN, dtype=dtype)
    compiled = torch.compile(block, backend="fxfuse", options={"inner": "eager", "on_error": "raise"})
    out = compiled(x)
    assert [s.kernel for s in fxfuse.reports()[-1].sites] == [kernel]
    exact = Block.forward(block.double(), x.double())
    assert error(out, exact)[1] <= 2 * error(Block.forward(block.to(dtype), x), exact)[1] + FLOOR[dtype]


def test_one_row_of_more_dimensions() -> None:
    variant = {"norm": "early", "proj": "separate", "act": "silu"}
    captures = operands(torch.bfloat16, 1, 0, biases=True, variant=variant)
    flat = call("cpu_fp32_gemm", captures, variant)
    captures["x"] = captures["x"].reshape(1, 1, HIDDEN)
    assert torch.equal(call("cpu_fp32_gemm", captures, variant), flat.reshape(1, 1, OUT))
