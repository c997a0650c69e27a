"""Small models of transformers, with norms whose weights are not all one."""

from __future__ import annotations

from typing import Any

import torch

IDS = (torch.arange(12).reshape(2, 6),)
LAYERS = 2


def tiny(kind: str = "Qwen3", dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    import transformers

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **heads, **more})
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval().requires_grad_(False).to(dtype)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.copy_(torch.linspace(0.5, 1.5, parameter.shape[0]))
    return model
