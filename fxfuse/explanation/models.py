"""A model of transformers by name, with random weights: its graph is the trained one's."""

from __future__ import annotations

import os
from typing import Any

import torch

from fxfuse.errors import OptionError, first_line

MOST_BYTES = 4 << 30
_TOKENS = 8
_TINY = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "n_embd": 32, "n_layer": 4, "n_head": 4,
    "n_positions": 64, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "n_routed_experts": 4, "ffn_hidden_size": 48, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def model_named(name: str, layers: int | None) -> tuple[Any, tuple[Any, ...], dict[str, Any], str]:
    """The model, a call of it, and a sentence about what it is.

    Raises:
        OptionError: transformers is not installed, or knows no such model.
    """
    try:
        import transformers
    except ImportError:
        raise OptionError("--hf needs transformers: pip install 'fxfuse[demo]'.") from None
    transformers.logging.set_verbosity_error()
    config, is_tiny = _config(transformers, name)
    depth = next((k for k in ("num_hidden_layers", "n_layer", "num_layers") if hasattr(config, k)), None)
    says = "with random weights, and tiny: it was named by its type" if is_tiny else "with random weights"
    if layers is not None:
        if depth is None or layers < 1:
            raise OptionError(f"--layers={layers}: {name!r} has no number of layers that could be set so.")
        setattr(config, depth, layers)
    elif depth is not None and _bytes(transformers, config) > MOST_BYTES:
        says += f", and 2 of its {getattr(config, depth)} layers (--layers sets another number)"
        setattr(config, depth, 2)
    torch.manual_seed(0)
    model = _made(transformers, config)
    return model.eval(), (torch.arange(_TOKENS)[None],), {"use_cache": False}, f"{type(model).__name__} {says}"


def _config(transformers: Any, name: str) -> tuple[Any, bool]:
    kinds = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    if os.path.exists(name):
        folder = os.path.dirname(os.path.abspath(name)) if name.endswith(".json") else name
        return transformers.AutoConfig.from_pretrained(folder), False
    kind = name if name in kinds else next((k for k, v in kinds.items() if v == name), None)
    if kind is not None:
        plain = transformers.AutoConfig.for_model(kind)
        known = {k: v for k, v in _TINY.items() if hasattr(plain, k)}
        return transformers.AutoConfig.for_model(kind, **known), True
    try:
        return transformers.AutoConfig.from_pretrained(name), False
    except (OSError, ValueError) as error:
        raise OptionError(
            f"--hf {name!r} is no folder, no config.json, no model type of transformers (such as 'llama' or "
            f"'LlamaConfig'), and not in the local cache: {first_line(error)}"
        ) from None


def _bytes(transformers: Any, config: Any) -> int:
    with torch.device("meta"):
        return sum(p.nbytes for p in _made(transformers, config).parameters())


def _made(transformers: Any, config: Any) -> Any:
    try:
        return transformers.AutoModelForCausalLM.from_config(config)
    except ValueError:
        return transformers.AutoModel.from_config(config)
