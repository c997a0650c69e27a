"""How often each architecture has the patterns, as a function of its config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

CORE = ("rms_norm", "add_rms_norm", "rms_norm_gated_mlp", "gated_mlp", "rms_norm_qkv")

Counts = dict[str, int]
Form = Callable[[Any], Counts]


def _counts(norms: int, adds: int, headline: int, mlps: int, siblings: int) -> Counts:
    return dict(zip(CORE, (norms, adds, headline, mlps, siblings), strict=True))


def layers(c: Any) -> int:
    return c.num_hidden_layers


def dense_layers(c: Any) -> int:
    """How many of the layers have a gated MLP where the others have experts."""
    if getattr(c, "mlp_layer_types", None):
        return c.mlp_layer_types.count("dense")
    if getattr(c, "mlp_only_layers", None) is not None:
        return len([i for i in c.mlp_only_layers if i < layers(c)])
    return min(c.first_k_dense_replace, layers(c))


def pre_norm(c: Any) -> Counts:
    """Llama: two norms a layer and a last one; each but the first reads a sum; each but the last feeds projections."""
    n = layers(c)
    return _counts(2 * n + 1, 2 * n, n, n, 2 * n)


def pre_norm_scaled(c: Any) -> Counts:
    """Gemma scales embeddings, which is no sum either."""
    return pre_norm(c)


def pre_norm_packed(c: Any) -> Counts:
    """Phi-3: query, key and value are one linear, and so are gate and up."""
    n = layers(c)
    return _counts(2 * n + 1, 2 * n, n, n, 0)


def pre_norm_packed_mlp(c: Any) -> Counts:
    """GLM: gate and up are one linear, query, key and value three."""
    n = layers(c)
    return _counts(2 * n + 1, 2 * n, n, n, n)


def pre_norm_ungated(c: Any) -> Counts:
    """Arcee: the MLP has no gate."""
    n = layers(c)
    return _counts(2 * n + 1, 2 * n, 0, 0, n)


def query_key_norm(c: Any) -> Counts:
    """Qwen3: queries and keys have a norm each."""
    n = layers(c)
    return _counts(4 * n + 1, 2 * n, n, n, 2 * n)


def sandwich(c: Any) -> Counts:
    """Gemma 2: a norm before and one behind each branch; those behind read a projection."""
    n = layers(c)
    return _counts(4 * n + 1, 2 * n, n, n, 2 * n)


def sandwich_query_key_norm(c: Any) -> Counts:
    """Gemma 3: the same, and norms of queries and keys."""
    n = layers(c)
    return _counts(6 * n + 1, 2 * n, n, n, 2 * n)


def sandwich_packed_mlp(c: Any) -> Counts:
    """GLM-4."""
    n = layers(c)
    return _counts(4 * n + 1, 2 * n, n, n, n)


def post_norm(c: Any) -> Counts:
    """OLMo 2, EXAONE 4: norms behind the branches, of queries and of keys; only the last one reads a sum."""
    n = layers(c)
    return _counts(4 * n + 1, 1, 0, n, 0)


def post_norm_experts(c: Any) -> Counts:
    """FlexOLMo: the same with experts."""
    return _counts(4 * layers(c) + 1, 1, 0, 0, 0)


def experts(c: Any) -> Counts:
    """Mixtral, GPT-OSS: experts only, and the router reads the norm along with them."""
    n = layers(c)
    return _counts(2 * n + 1, 2 * n, 0, 0, n)


def shared_expert(c: Any) -> Counts:
    """Aria: in each layer routed experts and a shared one, a gated MLP whose norm the router reads, too."""
    n = layers(c)
    return _counts(2 * n + 1, 2 * n, 0, n, n)


def mixed(c: Any) -> Counts:
    """Dense layers first, then experts with a shared one; GLM-4.5."""
    n, d = layers(c), dense_layers(c)
    return _counts(2 * n + 1, 2 * n, d, n, n + d)


def mixed_query_key_norm(c: Any) -> Counts:
    """The same with norms of queries and keys; dots.llm1."""
    n, d = layers(c), dense_layers(c)
    return _counts(4 * n + 1, 2 * n, d, n, n + d)


def mixed_latent(c: Any) -> Counts:
    """DeepSeek: latent attention norms the compressed queries and the compressed keys and values."""
    return mixed_query_key_norm(c)


def routed_query_key_norm(c: Any) -> Counts:
    """Qwen3-MoE: dense layers, and experts without a shared one."""
    n, d = layers(c), dense_layers(c)
    return _counts(4 * n + 1, 2 * n, d, d, n + d)


def layer_norm(siblings: int) -> Form:
    """LayerNorm, a projection, an activation, a projection; query, key and value apart (1) or in one linear (0)."""

    def form(c: Any) -> Counts:
        n = layers(c)
        return {"layer_norm_mlp": n, "sibling_linears": siblings * n}

    return form


FORMS: dict[str, Form] = {
    "llama": pre_norm,
    "mistral": pre_norm,
    "qwen2": pre_norm,
    "cwm": pre_norm,
    "diffllama": lambda c: {**pre_norm(c), "rms_norm": 3 * layers(c) + 1},
    "ernie4_5": pre_norm,
    "granite": pre_norm,
    "granite_swa": pre_norm,
    "helium": pre_norm,
    "ministral": pre_norm,
    "seed_oss": pre_norm,
    "smollm3": pre_norm,
    "gemma": pre_norm_scaled,
    "phi3": pre_norm_packed,
    "glm": pre_norm_packed_mlp,
    "arcee": pre_norm_ungated,
    "qwen3": query_key_norm,
    "doge": query_key_norm,
    "gemma2": sandwich,
    "gemma3_text": sandwich_query_key_norm,
    "glm4": sandwich_packed_mlp,
    "olmo2": post_norm,
    "olmo3": post_norm,
    "exaone4": post_norm,
    "flex_olmo": post_norm_experts,
    "mixtral": experts,
    "gpt_oss": experts,
    "granitemoe": experts,
    "aria_text": shared_expert,
    "glm4_moe": mixed,
    "dots1": mixed_query_key_norm,
    "exaone_moe": mixed_query_key_norm,
    "deepseek_v2": mixed_latent,
    "deepseek_v3": mixed_latent,
    "glm4_moe_lite": mixed_latent,
    "qwen3_moe": routed_query_key_norm,
    "bert": layer_norm(1),
    "biogpt": layer_norm(1),
    "bloom": layer_norm(0),
    "electra": layer_norm(1),
    "gpt2": layer_norm(0),
    "gpt_bigcode": layer_norm(0),
    "gpt_neo": layer_norm(1),
    "gpt_neox": layer_norm(0),
    "opt": layer_norm(1),
    "starcoder2": layer_norm(1),
}
"""Architecture -> its counts."""
