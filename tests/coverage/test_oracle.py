"""The oracle counts what is there, nothing else; and the runner sees a wrong result, a crash and a lost site."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from styles.models import lit_gpt, llama2c, timm
from styles.models.common import LAYERS, VOCAB
from torch import nn

import fxfuse
from bench.coverage import difference, headline, oracle, tiny, worker
from bench.coverage.arms import arms_of
from bench.coverage.worker import run_model


def call(model: Any, seed: int, of: nn.Module | None = None) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {"logits": model(torch.randint(VOCAB, (2, 7), generator=torch.Generator().manual_seed(seed)))}


def present(build: Any) -> dict[str, int]:
    model = build().eval()
    return oracle.present(oracle.record(model, lambda: call(model, 0)))


@pytest.mark.parametrize("style", [llama2c.STYLE, timm.GLU, timm.SWIGLU, lit_gpt.GEMMA], ids=lambda s: s.name)
def test_counts_without_the_matcher(style: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_here(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the oracle asked the matcher")

    monkeypatch.setattr("fxfuse.engine.fuse", not_here)
    found = present(style.build)
    assert {p: found[p] for p in style.expect} == dict(style.expect)


def test_an_edit_is_seen() -> None:
    build, expect = llama2c.STYLE.mutants["scaled activation"]
    found = present(build)
    assert {p: found[p] for p in expect} == dict(expect)


def test_a_norm_with_another_reader_is_told_apart() -> None:
    from styles.models import mistral

    build, _ = mistral.STYLE.mutants["the norm is the residual"]
    found = present(build)
    assert found["rms_norm_gated_mlp"] == 0
    assert found["RMSNorm before a gated MLP, read by others, too"] == LAYERS


class Residual(nn.Module):
    """A block around a LayerNorm and an MLP."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.norm, self.fc, self.proj = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.embed, self.body = nn.Embedding(VOCAB, 8), body

    def mlp(self, x: Any) -> Any:
        return self.proj(F.gelu(self.fc(x)))

    def forward(self, ids: Any) -> Any:
        return self.body(self, self.embed(ids).sin())


@pytest.mark.parametrize(("body", "own", "shared"), [
    (lambda m, x: x + m.mlp(m.norm(x)), 1, 0),
    (lambda m, x: m.norm(x + m.mlp(x)), 1, 0),
    (lambda m, x: x + m.norm(x) + m.mlp(m.norm(x)), 1, 0),
    (lambda m, x: (h := m.norm(x)) + m.mlp(h), 0, 1),
    (lambda m, x: m.norm(x.cos() + m.mlp(x)), 0, 0),
    (lambda m, x: x + m.proj(m.fc(m.norm(x))), 0, 0),
])  # fmt: skip
def test_layer_norms_of_mlps(body: Any, own: int, shared: int) -> None:
    found = present(lambda: Residual(body))
    assert (found["layer_norm_mlp"], found["LayerNorm before an MLP, read by others, too"]) == (own, shared)


def test_what_the_captured_graph_does_wrong_is_not_the_kernels() -> None:
    eager, base = [{"y": torch.tensor([1.0, 2.0])}], [{"y": torch.tensor([5.0, 6.0])}]
    assert worker._apart(base, base, eager)[0]["y"].tolist() == [1.0, 2.0]
    assert worker._apart([{"y": torch.tensor([5.0, 6.5])}], base, eager)[0]["y"].tolist() == [1.0, 2.5]


def test_outliers_are_in_the_channels_named() -> None:
    model = nn.Sequential(nn.Linear(24, 32), nn.RMSNorm(32))
    before = [p.detach().clone() for p in model.parameters()]
    tiny.enlarge(model)
    for was, now in zip(before, model.parameters(), strict=True):
        changed = (was != now).reshape(-1, was.shape[-1]).any(0).nonzero().flatten().tolist()
        assert changed == [5, 17]
        torch.testing.assert_close(now[..., [5, 17]], was[..., [5, 17]] * 100)


def test_families_of_the_headline_are_told_apart() -> None:
    def row(family: str, present: int, rewritten: int, shared: int) -> dict[str, Any]:
        counts = {"rms_norm_gated_mlp": {"present": present, "rewritten": rewritten}}
        return {"family": family, "patterns": counts, "beside": {headline.SHARED: shared}}

    rows = [row("llama", 2, 2, 0), row("dots1", 1, 1, 1), row("aria", 0, 0, 2), row("bitnet", 0, 0, 0)]
    assert headline.groups(rows) == {
        "alone": {"dots1": (1, 1), "llama": (2, 2)},
        "shared only": {"aria": (2, 0)},
        "not it": {"bitnet": (0, 0)},
    }
    (first, *_) = headline.section([*rows, row("lost", 2, 1, 0)])
    assert first.startswith("In 3 families")
    assert "in 2 of them" in first


@fxfuse.pattern("silu_product")
def silu_product(g: Any = fxfuse.Input(..., fxfuse.Dim("n")), u: Any = fxfuse.Input(..., fxfuse.Dim("n"))) -> Any:
    return F.silu(g) * u


@fxfuse.kernel(silu_product, name="inexact", backward="autograd")
def inexact(g: Any, u: Any) -> Any:
    return F.silu(g) * u * 1.001


@fxfuse.kernel(silu_product, name="raises", backward="autograd")
def raises(g: Any, u: Any) -> Any:
    raise RuntimeError("not today")


@pytest.mark.parametrize(("kernel", "status"), [("inexact", "wrong"), ("raises", "rewrite error")])
def test_a_kernel_that_is_wrong_or_raises_is_seen(kernel: str, status: str) -> None:
    (options,) = arms_of(["silu_product"], together=()).values()
    options.update(patterns=[silu_product], kernels={"silu_product": kernel})
    torch.manual_seed(0)
    record = run_model(llama2c.STYLE.build().eval(), call, {"silu_product": options})
    assert record["status"] == status
    assert record["stock"] <= 1


def test_the_difference_names_what_was_lost() -> None:
    row = {"present": 4, "rewritten": 4, "variants": ["norm=early"]}
    lost = {"present": 4, "rewritten": 2, "variants": ["norm=early"]}
    runs = {"fp32 forward": {"status": "ok"}}
    model = {"name": "llama", "runs": runs, "patterns": {"rms_norm": row}}
    before = {"architectures": [model, {"name": "old", "runs": runs, "patterns": {}}]}
    after = {"architectures": [{**model, "patterns": {"rms_norm": lost}}]}
    assert list(difference.differences(before, after)) == [
        "llama: rms_norm 4 of 4 -> 2 of 4  LOST",
        "old: only in the first",
    ]
    assert list(difference.differences(before, before)) == []
