"""The Triton kernels inside whole compiled models, on a CPU through the interpreter. Run by test_interpreted.py."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GemmaConfig, LlamaConfig, PreTrainedConfig, Qwen2Config

import fxfuse

PATTERN = "rms_norm_gated_mlp"
SIZES = {
    "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64,
}  # fmt: skip
CONFIGS = {
    "early silu": LlamaConfig(**SIZES),
    "early silu with biases": LlamaConfig(**SIZES, mlp_bias=True),
    "early silu, biased attention": Qwen2Config(**SIZES),
    "offset gelu_tanh": GemmaConfig(**SIZES, head_dim=12),
}
BY_ROWS = ["triton_decode", "triton_64_rows", "triton_prefill"]


def check(config: PreTrainedConfig, dtype: torch.dtype, options: Mapping, rows: Mapping[int, Mapping]) -> None:
    """Compile, and compare each call with eager and float64; ``rows``: count -> pattern -> (kernel, sites)."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().to(dtype)
    exact = AutoModelForCausalLM.from_config(config).eval()
    exact.load_state_dict(model.state_dict())
    exact = exact.double()
    fast = torch.compile(model, backend="fxfuse", options={"inner": "eager", "on_error": "raise", **options})
    for count, expected in rows.items():
        ids = torch.randint(0, 64, (1, count))
        out = fast(ids, use_cache=False).logits.double()
        report = fxfuse.reports()[-1]
        placed = [(s.pattern, s.kernel) for s in report.sites if s.outcome == "rewritten"]
        wanted = [(pattern, kernel) for pattern, (kernel, sites) in expected.items() for _ in range(sites)]
        assert sorted(placed) == sorted(wanted), str(report)
        want = exact(ids, use_cache=False).logits
        eager = (model(ids, use_cache=False).logits.double() - want).norm() / want.norm()
        floor = 1e-6 if dtype is torch.float32 else 1e-3
        assert (out - want).norm() / want.norm() <= 2 * eager + floor


CASES = [
    *((name, torch.bfloat16, "eager") for name in ("offset gelu_tanh",)),
    ("early silu", torch.float32, "aot_eager"),
    ("early silu", torch.float32, "inductor"),
]


@pytest.mark.parametrize(("name", "dtype", "inner"), CASES)
@torch.no_grad()
def test_a_model_decodes_with_it(name: str, dtype: torch.dtype, inner: str) -> None:
    options = {"inner": inner, "kernels": {PATTERN: ["triton_decode", "plain"]}}
    rows = {6: "triton_decode", 40: "plain"} | ({1: "triton_decode"} if inner == "eager" else {})
    check(CONFIGS[name], dtype, options, {count: {PATTERN: (kernel, 2)} for count, kernel in rows.items()})


@torch.no_grad()
def test_a_kernel_for_each_number_of_rows() -> None:
    rows = {3: BY_ROWS[0], 20: BY_ROWS[1], 70: BY_ROWS[2]}
    expected = {count: {PATTERN: (kernel, 2)} for count, kernel in rows.items()}
    check(CONFIGS["early silu with biases"], torch.bfloat16, {"kernels": {PATTERN: BY_ROWS}}, expected)


@torch.no_grad()
def test_norms_and_projections() -> None:
    """Two layers: a norm for the projections of each, the MLP's norms with their adds, and the last one."""
    patterns = ["rms_norm_qkv", "add_rms_norm", "gated_mlp"]
    kernels = {"rms_norm_qkv": BY_ROWS[:2], "add_rms_norm": "triton", "gated_mlp": BY_ROWS[:2]}
    few = {"rms_norm_qkv": ("triton_decode", 2), "add_rms_norm": ("triton", 3), "gated_mlp": ("triton_decode", 2)}
    more = {pattern: (kernel.replace("decode", "64_rows"), sites) for pattern, (kernel, sites) in few.items()}
    options = {"patterns": patterns, "kernels": kernels}
    check(CONFIGS["early silu, biased attention"], torch.bfloat16, options, {3: few, 20: more})


@torch.no_grad()
def test_a_residual_is_added_by_the_kernel() -> None:
    name = "rms_norm_gated_mlp_add"
    options = {"patterns": [name], "kernels": {name: BY_ROWS[:2]}}
    check(
        CONFIGS["offset gelu_tanh"], torch.bfloat16, options, {3: {name: (BY_ROWS[0], 2)}, 20: {name: (BY_ROWS[1], 2)}}
    )


@torch.no_grad()
def test_norms_alone() -> None:
    """Gemma 2 has four norms a layer, and the last one."""
    options = {"patterns": ["rms_norm"], "kernels": {"rms_norm": "triton"}}
    config = Gemma2Config(**SIZES, head_dim=12)
    check(config, torch.bfloat16, options, {5: {"rms_norm": ("triton", 9)}})


class Added(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(48), requires_grad=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = x + y
        return total, self.weight * (total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-6))


@pytest.mark.parametrize(
    ("shape", "dtype", "kernel"),
    [
        ((2, 3, 48), torch.float32, "triton"),
        ((2, 3, 48), torch.bfloat16, "triton"),
        ((3, 48), torch.float32, "plain"),
        ((48,), torch.float32, "plain"),
    ],
)
@torch.no_grad()
def test_a_residual_that_the_op_cannot_take_is_left_to_the_next_kernel(shape, dtype, kernel) -> None:
    torch._dynamo.reset()
    model, x, y = Added(), torch.randn(2, 3, 48), torch.randn(shape).to(dtype)
    options = {"patterns": ["add_rms_norm"], "kernels": {"add_rms_norm": ["triton", "plain"]}}
    out = torch.compile(model, backend=fxfuse.Backend(inner="eager", on_error="raise", **options))(x, y)
    assert [s.kernel for s in fxfuse.reports()[-1].sites if s.outcome == "rewritten"] == [kernel]
    torch.testing.assert_close(out, model(x, y))


@torch.no_grad()
def test_rows_that_lie_otherwise_are_left_to_the_next_kernel() -> None:
    """Eager's norm of a transposed tensor is transposed, too."""
    options = {"patterns": ["add_rms_norm"], "kernels": {"add_rms_norm": ["triton", "plain"]}}
    for dynamic in (False, True):
        for x, kernel in ((torch.randn(2, 3, 48), "triton"), (torch.randn(3, 2, 48).transpose(0, 1), "plain")):
            torch._dynamo.reset()
            backend = fxfuse.Backend(inner="eager", on_error="raise", **options)
            out = torch.compile(Added(), backend=backend, dynamic=dynamic)(x, x)
            assert [s.kernel for s in fxfuse.reports()[-1].sites if s.outcome == "rewritten"] == [kernel]
            torch.testing.assert_close(out, Added()(x, x))
            assert [t.stride() for t in out] == [t.stride() for t in Added()(x, x)]


@torch.no_grad()
def test_too_many_rows_for_the_only_kernel_named_is_an_error() -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["early silu"]).eval()
    fast = torch.compile(model, backend="fxfuse", options={"inner": "eager", "kernels": {PATTERN: "triton_decode"}})
    fast(torch.zeros(1, 16, dtype=torch.long), use_cache=False)
    with pytest.raises(ValueError, match="'triton_decode' needs 0 to 16 rows; the site has 17"):
        torch.compile(
            model, backend="fxfuse", dynamic=False, options={"inner": "eager", "kernels": {PATTERN: "triton_decode"}}
        )(torch.zeros(1, 17, dtype=torch.long), use_cache=False)
