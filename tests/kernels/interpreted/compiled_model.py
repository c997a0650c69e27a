"""The decode kernel inside whole compiled models, on a CPU through Triton's interpreter (see the other file here)."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, Qwen2Config

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


CASES = [
    *((name, torch.bfloat16, "eager") for name in CONFIGS),
    ("early silu", torch.float32, "aot_eager"),
    ("early silu", torch.float32, "inductor"),
]


@pytest.mark.parametrize(("name", "dtype", "inner"), CASES)
@torch.no_grad()
def test_a_model_decodes_with_it(name: str, dtype: torch.dtype, inner: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval().to(dtype)
    exact = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    exact.load_state_dict(model.state_dict())
    exact = exact.double()
    options = {"inner": inner, "on_error": "raise", "kernels": {PATTERN: ["triton_decode", "plain"]}}
    fast = torch.compile(model, backend="fxfuse", options=options)
    for rows, kernel in ((6, "triton_decode"), (1, "triton_decode"), (40, "plain")):
        ids = torch.randint(0, 64, (1, rows))
        out = fast(ids, use_cache=False).logits.double()
        assert {s.kernel for s in fxfuse.reports()[-1].sites} == {kernel}, str(fxfuse.reports()[-1])
        assert fxfuse.reports()[-1].rewritten[PATTERN] == 2
        want = exact(ids, use_cache=False).logits
        eager = (model(ids, use_cache=False).logits.double() - want).norm() / want.norm()
        floor = 1e-6 if dtype is torch.float32 else 1e-3
        assert (out - want).norm() / want.norm() <= 2 * eager + floor


@torch.no_grad()
def test_too_many_rows_for_the_only_kernel_named_is_an_error() -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["early silu"]).eval()
    fast = torch.compile(model, backend="fxfuse", options={"inner": "eager", "kernels": {PATTERN: "triton_decode"}})
    fast(torch.zeros(1, 16, dtype=torch.long), use_cache=False)
    with pytest.raises(ValueError, match="'triton_decode' needs 0 to 16 rows; the site has 17"):
        torch.compile(
            model, backend="fxfuse", dynamic=False, options={"inner": "eager", "kernels": {PATTERN: "triton_decode"}}
        )(torch.zeros(1, 17, dtype=torch.long), use_cache=False)
