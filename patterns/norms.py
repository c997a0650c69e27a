"""Spellings of RMSNorm, for use inside patterns."""

from __future__ import annotations

import functools
from typing import Any

import torch

from fxfuse import one_of


def rms_norm(x: Any, weight: Any, eps: Any) -> Any:
    """RMSNorm over the last dimension, statistics in fp32 (Zhang & Sennrich, arXiv 1910.07467).

    ``x`` [..., hidden], ``weight`` [hidden]. Three functions that differ in bf16 by where they round: early (Llama, T5)
    casts back, then scales; late (GPT-OSS, OLMo2, ``nn.RMSNorm``) scales, then casts; offset (Gemma) scales by 1 + w.
    """
    h = x.float()
    h = h * _factor(h, eps)
    return one_of(
        "norm",
        early=lambda: weight * h.to(x.dtype),
        late=lambda: (weight * h).to(x.dtype),
        offset=lambda: (h * (1.0 + weight.float())).to(x.dtype),
    )


def any_rms_norm(x: Any, weight: Any, eps: Any, wide: Any) -> Any:
    """The same, and three more: bare casts the result and scales nothing (nanochat, Llama 4), rounded the factor
    (DeepSeek V4), and narrowed makes of fp32, such as a product with a gate (Mamba 2), the dtype of its weight."""

    # Alternatives share what they have in common, and a site of the last one has no x.
    h = functools.cache(lambda: x.float())
    factor = functools.cache(lambda: _factor(h(), eps))
    bare = functools.cache(lambda: h() * factor())
    return one_of(
        "norm",
        early=lambda: weight * bare().to(x.dtype),
        late=lambda: (weight * bare()).to(x.dtype),
        offset=lambda: (bare() * (1.0 + weight.float())).to(x.dtype),
        bare=lambda: bare().to(x.dtype),
        rounded=lambda: x * factor().to(x.dtype),
        narrowed=lambda: weight * (wide * _factor(wide, eps)).to(weight.dtype),
    )


def _factor(h: Any, eps: Any) -> Any:
    return torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
