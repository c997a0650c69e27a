"""Spellings of RMSNorm, for use inside patterns."""

from __future__ import annotations

from typing import Any

import torch

from fxfuse import one_of


def rms_norm(x: Any, weight: Any, eps: Any) -> Any:
    """RMSNorm over the last dimension, statistics in fp32 (Zhang & Sennrich, arXiv 1910.07467).

    ``x`` [..., hidden], ``weight`` [hidden], or None and then nothing is scaled. Three functions that differ in bf16 by
    where they round: early (Llama) casts back, then scales; late (GPT-OSS, OLMo2) scales, then casts; offset (Gemma)
    scales by 1 + w.
    """
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    if weight is None:
        return h.to(x.dtype)
    return one_of(
        "norm",
        early=lambda: weight * h.to(x.dtype),
        late=lambda: (weight * h).to(x.dtype),
        offset=lambda: (h * (1.0 + weight.float())).to(x.dtype),
    )
