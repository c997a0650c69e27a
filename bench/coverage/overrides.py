"""What the tiny config of an architecture needs beyond the common sizes: layer types, and sizes that depend on others.

Each has one layer at least of every kind that the architecture knows, so hybrids have more than two.
"""

from __future__ import annotations

from typing import Any

_HYBRID: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
}
_LATENT: dict[str, Any] = {"num_key_value_heads": 4}
_BIG_VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
_DENSE_FIRST: dict[str, Any] = {"mlp_layer_types": ["dense", "sparse"]}
_LLAMA4: dict[str, Any] = {"moe_layers": [1], "intermediate_size_mlp": 48}
_SHARED_KV: dict[str, Any] = {
    "num_hidden_layers": 4, "num_kv_shared_layers": 2, "vocab_size_per_layer_input": 99,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "hidden_size_per_layer_input": 16,
}  # fmt: skip
_QWEN_NEXT: dict[str, Any] = {**_HYBRID, "mlp_only_layers": [0]}

OVERRIDES: dict[str, dict[str, Any]] = {
    "axk1": _LATENT,
    "axk2": _LATENT,
    "blt": {"encoder_config": {"hidden_size_global": 32}, "decoder_config": {"hidden_size_global": 32},
            "encoder_hash_byte_group_vocab": 99},
    "bailing_hybrid": {**_LATENT, **_HYBRID},
    "bamba": {"num_hidden_layers": 4, "attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "dbrx": {
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek_v2": {**_LATENT, "topk_method": "greedy"},
    "deepseek_v3": _LATENT,
    "deepseek_v32": {**_LATENT, "index_n_heads": 4, "index_head_dim": 16, "index_topk": 4},
    "dots3_note": {"text_config": _LATENT},
    "dots3_note_text": _LATENT,
    "esmc": _LATENT,
    "falcon_h1": {"mlp_multipliers": [0.5, 2.0], "ssm_in_multiplier": 0.5},
    "gemma3n_text": {**_SHARED_KV, "activation_sparsity_pattern": [0.0, 0.0, 0.0, 0.0], "laurel_rank": 8},
    "gemma4_text": {"vocab_size_per_layer_input": 99, "hidden_size_per_layer_input": 16, "global_head_dim": 16},
    "gemma4": {"text_config": {"vocab_size_per_layer_input": 99, "hidden_size_per_layer_input": 16}},
    "gemma4_unified": {"text_config": {"vocab_size_per_layer_input": 99, "hidden_size_per_layer_input": 16}},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": {**_LATENT, "index_n_heads": 4, "index_head_dim": 16, "index_topk": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": _HYBRID,
    "inkling_text": _DENSE_FIRST,
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "kimi_linear": {**_LATENT, **_HYBRID, "linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lfm3": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "llama4": {"text_config": _LLAMA4},
    "llama4_text": _LLAMA4,
    "longcat_flash": _LATENT,
    "mamba2": {"head_dim": 16},
    "mellum": _DENSE_FIRST,
    "minicpm3": _LATENT,
    "mistral4": _LATENT,
    "xmod": {"default_language": "en_XX"},
    "youtu": _LATENT,
    "mpt": {"attn_config": {"attn_pdrop": 0}},
    "neomme": {"head_dim": 16},
    "qwen3_5": {"text_config": _HYBRID},
    "qwen3_5_text": _HYBRID,
    "qwen3_5_moe": {"text_config": _HYBRID},
    "qwen3_5_moe_text": _HYBRID,
    "qwen3_next": _QWEN_NEXT,
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32},
    "reformer": {
        "attention_head_size": 8, "axial_pos_embds": False, "attn_layers": ["local", "lsh"], "feed_forward_size": 48,
        "hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0, "num_buckets": 2, "is_decoder": True,
        "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "hash_seed": 1,
    },
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
}  # fmt: skip
"""Model type -> fields of its config; ``text_config`` and the like are dicts of their own."""
