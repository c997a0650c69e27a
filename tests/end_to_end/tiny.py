"""What the end-to-end tests compile, and how they look at what came of it. The oracle is eager, never Inductor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxfuse
from fxfuse.params.share import groups_of

PATTERN = "rms_norm_gated_mlp"

PLACEMENTS: dict[str, dict[str, Any]] = {
    "separate": {"weights": "separate"},
    "share": {"weights": "share"},
    "inline": {"weights": "inline"},
    "copy": {"weights": "copy", "extra_memory": 1.0},
}
"""The options that give each placement of weights."""

EVERY_PLACEMENT = pytest.mark.parametrize("placement", PLACEMENTS)


class Norm(nn.Module):
    """RMSNorm as Llama writes it."""

    def __init__(self, hidden: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(hidden) + 0.5)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        h = x.to(torch.float32)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * h.to(dtype)


class Mlp(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, inner, bias=False)
        self.up = nn.Linear(hidden, inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, hidden: int, inner: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = Norm(hidden, eps)
        self.mlp = Mlp(hidden, inner)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Tiny(nn.Module):
    """A decoder without its attention: ``layers`` sites, floats in and floats out, and quick to trace."""

    def __init__(self, layers: int = 2, hidden: int = 16, inner: int = 32, eps: float = 1e-6) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(hidden, inner, eps) for _ in range(layers))
        self.norm = Norm(hidden, eps)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def batch(rows: int = 5, hidden: int = 16, seed: int = 0, **kwargs: Any) -> Tensor:
    """An input of ``Tiny``: [2, rows, hidden]."""
    return torch.randn(2, rows, hidden, generator=torch.Generator().manual_seed(seed), **kwargs)


def tiny_llama(layers: int = 2, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Any:
    """A random Llama of transformers, in eval mode."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=None, eos_token_id=None,
        **kwargs,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def compiled(model: Any, placement: str = "separate", *, inner: str = "eager", fullgraph: bool = False, **options: Any):
    """``model`` compiled with the options of a placement; the warnings of a miss are errors unless asked for."""
    backend = fxfuse.Backend(**{"inner": inner, "on_error": "raise", **PLACEMENTS[placement], **options})
    return torch.compile(model, backend=backend, fullgraph=fullgraph)


def graphs() -> int:
    """How many graphs Dynamo has compiled in this test."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@contextlib.contextmanager
def recorded() -> Iterator[list[fxfuse.Report]]:
    """The reports of the compiles that happen inside, filled when it ends."""
    before = fxfuse.reports()
    new: list[fxfuse.Report] = []
    yield new
    new += [r for r in fxfuse.reports() if not any(r is old for old in before)]


def count(reports: list[fxfuse.Report], outcome: str = "rewritten") -> int:
    """Sites with this outcome over several reports."""
    return sum(site.outcome == outcome for report in reports for site in report.sites)


def placed(model: nn.Module, placement: str, sites: int, reports: list[fxfuse.Report]) -> None:
    """Assert that the sites found their weights as asked for, and that only ``share`` moved any."""
    assert [s.weights for r in reports for s in r.sites] == [placement] * sites
    assert len(groups_of(model)) == (sites if placement == "share" else 0)


def close(found: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    """Assert equality up to fp32 rounding."""
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-5)
