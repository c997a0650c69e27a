"""The bench's arms: each computes what eager does, one that does not is no arm, and one that cannot run says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxfuse
from fxfuse.benchmarks import by_hand, op
from fxfuse.benchmarks.arms import ARMS, MODEL, absent, chosen, compiled
from fxfuse.benchmarks.by_hand import maker
from fxfuse.benchmarks.errors import BenchError
from fxfuse.benchmarks.models import build, prompt
from fxfuse.benchmarks.sets import subject
from fxfuse.benchmarks.shapes import OpCell, op_cells
from fxfuse.library import lookup
from fxfuse.tuning import Bench
from tests.bench.benching import PATTERN, TINY, use_tiny

CPU = torch.device("cpu")
FEW = Bench(seconds=0.0, least=2, most=2, cache=1 << 12)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny(monkeypatch)


def measured(pattern: str, dtype: str = "fp32", rows: int = 3, arms: Any = None) -> dict[str, Any]:
    known = op.arms_of(pattern)
    return op.measure(
        OpCell(pattern, "tiny", dtype, rows), chosen(known, arms), CPU, FEW, lambda _: None, inner="eager"
    )


@pytest.mark.parametrize("pattern", [PATTERN, "gated_mlp", "rms_norm_qkv", "rms_norm", "add_rms_norm"])
def test_every_arm_that_runs_agrees_with_eager_and_every_other_says_why(pattern: str) -> None:
    found = measured(pattern)
    assert {"eager", "inductor", "fxfuse"} <= set(found["arms"])
    assert found["against"] == "float64"
    assert all(figures["within"] for figures in found["arms"].values())
    names = {arm.name for arm in op.arms_of(pattern)}
    assert set(found["arms"]) | set(found["skipped"]) == names
    assert all(found["skipped"].values())
    assert found["skipped"]["coordinate-descent"] == "needs a cuda device"
    assert found["skipped"]["max-autotune"] == "is a mode of Inductor's, and eager compiles here"


def test_kernels_by_name_ran_and_those_that_cannot_were_not_tried() -> None:
    found = measured(PATTERN)
    assert found["arms"]["kernel:plain"]["ran"] == "plain (separate)"
    assert found["arms"]["kernel:stacked"]["ran"] == "stacked (share)"
    assert found["skipped"]["kernel:triton_decode"] == "needs a cuda device"
    assert "derives a weight from gate_bias" in found["skipped"]["kernel:stacked_biased"]


def test_bytes_and_operations_are_those_of_the_site() -> None:
    found = measured(PATTERN, "bf16", rows=3, arms=["eager", "inductor"])
    weights = 16 + 3 * 16 * 32
    assert found["bytes"] == 2 * (weights + 3 * 16 + 3 * 16)
    assert found["flops"] == 2 * 3 * 3 * 16 * 32
    assert found["sets"] == FEW.sets(2 * weights, CPU)


class Halved(nn.Module):
    """Wrong, and quick."""

    def __init__(self, tensors: Any) -> None:
        super().__init__()
        self.inner = by_hand.StackedMlp(tensors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) / 2


def test_an_arm_that_computes_something_else_or_fails_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(by_hand.MODULES["by hand"], PATTERN, Halved)
    found = measured(PATTERN, arms=["eager", "inductor", "hand-stacked"])
    assert set(found["arms"]) == {"eager", "inductor"}
    assert found["skipped"]["hand-stacked"] == "its result is off by 5.0e-01"

    def fails(tensors: Any) -> Any:
        raise ZeroDivisionError("in the module")

    monkeypatch.setitem(by_hand.MODULES["by hand"], PATTERN, fails)
    found = measured(PATTERN, arms=["eager", "inductor", "hand-stacked"])
    assert found["skipped"]["hand-stacked"] == "ZeroDivisionError: in the module"


def test_no_two_sets_share_memory_and_all_have_the_same_values() -> None:
    made = subject(lookup(PATTERN, "test"), TINY, 3, torch.float32, CPU)
    kind = made.module_class()
    one, other = (made.module(kind, made.weights()) for _ in range(2))
    assert type(one) is type(other)
    x = made.inputs[0]
    torch.testing.assert_close(one(x), other(x), rtol=0, atol=0)
    pointers = [p.data_ptr() for module in (one, other) for p in module.parameters()]
    assert len(set(pointers)) == len(pointers)


def test_a_module_by_hand_reads_its_own_stacked_weight() -> None:
    made = subject(lookup(PATTERN, "test"), TINY, 3, torch.float32, CPU)
    build_one = maker("by hand", PATTERN)
    assert not isinstance(build_one, str)
    module: Any = build_one(made.weights())
    (want,) = (t.float() for t in made.exact())
    torch.testing.assert_close(module(made.inputs[0]), want)
    with torch.no_grad():
        module.gate_up.zero_()
    assert module(made.inputs[0]).abs().max() == 0
    assert maker("by hand", "rms_norm") == "no module of rms_norm is written by hand here"


def test_the_order_of_cells_has_something_of_each_regime_first() -> None:
    cells = list(op_cells(["p"], ["w"], ["bf16", "fp32"], [1, 8, 64, 512, 4096]))
    assert [c.rows for c in cells] == [1, 64, 4096, 8, 512] * 2
    assert [c.dtype for c in cells] == ["bf16"] * 5 + ["fp32"] * 5


def test_a_name_that_no_arm_has_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(BenchError, match=r"unknown arm 'induktor'\. Did you mean 'inductor'\? Valid: .*'liger'"):
        chosen(ARMS[MODEL], ["induktor"])


def test_liger_is_an_arm_only_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    (liger,) = chosen(ARMS[MODEL], ["liger"])
    assert absent(liger, "cpu") == "needs a cuda device"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert absent(liger, "cuda") == "liger-kernel is not installed"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert absent(liger, "cuda") is None


def test_a_model_with_weights_stacked_by_hand_computes_the_same() -> None:
    pytest.importorskip("transformers")
    model = build("tiny", "fp32", "cpu", 2, None)
    ids = prompt(model, 5)
    with torch.no_grad():
        want = model(input_ids=ids).logits
        assert by_hand.stack_model(model) == 2
        torch.testing.assert_close(model(input_ids=ids).logits, want)
    assert not any("gate_proj" in name or "up_proj" in name for name, _ in model.named_parameters())


def test_an_arm_of_fxfuse_reports_what_it_ran() -> None:
    (arm,) = chosen(ARMS[MODEL], ["fxfuse-share"])
    made = subject(lookup(PATTERN, "test"), TINY, 3, torch.float32, CPU)
    module = made.module(made.module_class(), made.weights())
    with torch.no_grad():
        compiled(arm, module, inner="eager")(*made.inputs)
    assert [site.weights for site in fxfuse.reports()[-1].sites] == ["share"]
