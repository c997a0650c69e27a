"""A tiny random model of any architecture of transformers, from its config class alone.

The widths are small and differ from each other, so that no two sizes agree by accident; every kind of layer that the
architecture has is in it at least once. Most architectures take `SIZES`; `OVERRIDES` has what the others need.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, PretrainedConfig

from bench.coverage.architectures import Architecture
from bench.coverage.overrides import OVERRIDES

HIDDEN, HEADS, HEAD_DIM, INTERMEDIATE, LAYERS, VOCAB = 32, 4, 8, 48, 2, 99

SIZES: dict[str, Any] = {
    # what most call it
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": 2, "head_dim": HEAD_DIM, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    # older names
    "n_embd": HIDDEN, "n_layer": LAYERS, "n_layers": LAYERS, "n_head": HEADS, "n_heads": HEADS, "n_inner": INTERMEDIATE,
    "d_model": HIDDEN, "d_ff": INTERMEDIATE, "d_kv": HEAD_DIM, "num_layers": LAYERS, "num_heads": HEADS, "ffn_dim": 48,
    "ffn_hidden_size": INTERMEDIATE, "emb_dim": HIDDEN, "n_positions": 64, "n_ctx": 64, "embedding_size": HIDDEN,
    "word_embed_proj_dim": HIDDEN, "max_seq_len": 64, "max_sequence_length": 64,
    # encoders and decoders
    "decoder_layers": LAYERS, "encoder_layers": LAYERS, "num_decoder_layers": LAYERS, "num_encoder_layers": LAYERS,
    "decoder_attention_heads": HEADS, "encoder_attention_heads": HEADS, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48,
    "num_decoder_attention_heads": HEADS, "num_encoder_attention_heads": HEADS,
    # experts, one dense layer among them where a config can say so
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "moe_k": 2, "moe_topk": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "shared_expert_intermediate_size": 40, "shared_intermediate_size": 40, "moe_shared_expert_intermediate_size": 40,
    "mlp_only_layers": [0], "num_dense_layers": 1, "moe_layer_start_index": 1, "num_shared_experts": 1,
    "n_shared_experts": 1, "expert_ffn_hidden_size": 24,
    # latent attention
    "kv_lora_rank": 12, "q_lora_rank": 20, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 8,
    # state spaces
    "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": "auto", "state_size": 8, "mamba_num_heads": 4,
    "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8, "mamba_chunk_size": 8,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    # nothing random: training is compared, too
    "attention_dropout": 0.0, "hidden_dropout": 0.0, "dropout": 0.0, "activation_dropout": 0.0, "resid_pdrop": 0.0,
    "embd_pdrop": 0.0, "attn_pdrop": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": 0.0, "layerdrop": 0.0, "decoder_layerdrop": 0.0, "encoder_layerdrop": 0.0,
    "residual_dropout": 0.0, "embedding_dropout": 0.0, "resid_dropout": 0.0, "summary_first_dropout": 0.0,
    "router_jitter_noise": 0.0, "input_jitter_noise": 0.0, "dropout_rate": 0.0, "embd_dropout": 0.0,
    "is_decoder": True,
}  # fmt: skip
"""What is set in every config, and in the configs inside it, that has a field of the name."""


OF_KIND: dict[str, dict[str, Any]] = {
    "masked": {"is_decoder": False},
    "seq2seq": {"is_decoder": False},
    "image": {"is_decoder": False, "image_size": 16, "patch_size": 8, "num_channels": 3},
    "speech": {"is_decoder": False, "num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 64},
}
"""What is set besides by the kind of the architecture."""


def config_of(model_type: str, **changes: Any) -> Any:
    """The tiny config of an architecture; ``changes`` win over everything here."""
    return _tiny(CONFIG_MAPPING[model_type], {**OVERRIDES.get(model_type, {}), **changes})


def _tiny(config_class: Any, given: Mapping[str, Any]) -> Any:
    fields = _fields(config_class)
    own: dict[str, Any] = {name: value for name, value in SIZES.items() if name in fields}
    for name, inner in _inner_classes(config_class).items():
        own[name] = _tiny(inner, given.get(name, {}))
    inner_names = [name for name in given if isinstance(own.get(name), PretrainedConfig)]
    own.update({name: value for name, value in given.items() if name not in inner_names})
    return config_class(**own)


def _inner_classes(config_class: Any) -> dict[str, Any]:
    """The configs that are parts of this one."""
    found = {}
    for name, inner in (getattr(config_class, "sub_configs", None) or {}).items():
        default = (getattr(config_class, "sub_configs_defaults", None) or {}).get(name, inner)
        model_type = getattr(default, "model_type", "")
        if not dataclasses.is_dataclass(inner) and model_type in CONFIG_MAPPING:
            inner = CONFIG_MAPPING[model_type]
        if dataclasses.is_dataclass(inner):
            found[name] = inner
    return found


def _fields(config_class: Any) -> set[str]:
    """What a config's constructor calls its values."""
    return {f.name for f in dataclasses.fields(config_class) if f.init}


def model_of(architecture: Architecture, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random model with a language-modelling head, in eval mode, the same on each call."""
    fields = _fields(CONFIG_MAPPING[architecture.model_type])
    of_kind = {name: value for name, value in OF_KIND.get(architecture.kind, {}).items() if name in fields}
    config = config_of(architecture.model_type, **{**of_kind, **changes})
    model_class = getattr(transformers, architecture.class_name)
    if not isinstance(config, model_class.config_class):  # the mapping may name a config that has the model's in it
        config = next((c for c in vars(config).values() if isinstance(c, model_class.config_class)), config)
    torch.manual_seed(0)
    return model_class._from_config(config, dtype=dtype).eval()


LARGE, TIMES = (5, 17), 100.0
"""The channels that `enlarge` makes so many times as large."""


@torch.no_grad()
def enlarge(model: Any) -> None:
    """Outliers as trained models have them: the same few channels in embeddings, norms and linears' inputs."""
    for parameter in {id(p): p for p in model.parameters()}.values():
        for channel in LARGE:
            if parameter.dim() in (1, 2, 3) and parameter.shape[-1] > channel:
                parameter[..., channel] *= TIMES


def tokens(seed: int, shape: tuple[int, int] = (2, 7)) -> Tensor:
    """Token numbers without any that mean something special."""
    return torch.randint(8, VOCAB - 8, shape, generator=torch.Generator().manual_seed(seed))


def _noise(seed: int, shape: tuple[int, ...], model: Any) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(model.dtype)


def inputs_of(model: Any, architecture: Architecture, seed: int = 0, train: bool = False) -> dict[str, Any]:
    """The keywords of one call."""
    accepted = inspect.signature(model.forward).parameters
    if architecture.kind == "image":
        return {"pixel_values": _noise(seed, (2, 3, 16, 16), model)}
    if architecture.kind == "speech":
        heard = _noise(seed, (2, 8, 16), model)
        return {"input_features": heard, "decoder_input_ids": tokens(seed), "use_cache": False}
    books = getattr(model.config, "num_codebooks", 1) if architecture.kind == "causal" else 1
    ids = tokens(seed, (2 * books, 7))
    given: dict[str, Any] = {"input_ids": ids}
    if "use_cache" in accepted:
        given["use_cache"] = False
    if train and "labels" in accepted:
        given["labels"] = ids
    if architecture.kind == "seq2seq":
        given["decoder_input_ids"] = tokens(seed + 100)
    return given
