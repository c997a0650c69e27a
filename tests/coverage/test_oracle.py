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
from bench.coverage import difference, oracle
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
