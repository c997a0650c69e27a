"""Tuning: arms take turns on weights that no cache holds, what cannot be measured is said, compiles choose by it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from end_to_end.tiny import PATTERN, Tiny, batch, recorded

import fxfuse
from fxfuse import results
from fxfuse.cli import main
from fxfuse.kernels import registry
from fxfuse.kernels.gated_mlp import plain
from fxfuse.results import LEFT_ALONE
from fxfuse.tuning import Bench, tune, tune_pattern
from fxfuse.tuning.timing import TIMES_THE_CACHE, TuningError

QUICK = Bench(seconds=0.0, least=3, cache=1 << 12)
SIZES = {"hidden": 16, "intermediate": 32, "out": 16}


@pytest.fixture(autouse=True)
def own_results(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXFUSE_CACHE_DIR", str(tmp_path))


@pytest.fixture
def register() -> Iterator[Any]:
    names: list[str] = []

    def add(name: str, function: Any, **requirements: Any) -> None:
        names.append(name)
        fxfuse.kernel(PATTERN, name=name, backward="autograd", **requirements)(function)

    registry.kernels_for(PATTERN)
    yield add
    registry._REGISTRY[PATTERN] = [k for k in registry._REGISTRY[PATTERN] if k.name not in names]


# --- timing -----------------------------------------------------------------------------------------------------------


def test_arms_take_turns_and_every_call_takes_the_next_set() -> None:
    seen: list[tuple[str, int]] = []
    calls = {name: lambda n, name=name: seen.append((name, n)) for name in ("a", "b", "c")}
    arms = Bench(seconds=0.0, least=6, most=6).arms(calls, 4, torch.device("cpu"))
    assert set(arms) == {"a", "b", "c"}
    assert [n for _, n in seen] == [i % 4 for i in range(len(seen))]
    timed = [name for name, _ in seen][-18:]
    assert ["".join(timed[i : i + 3]) for i in range(0, 18, 3)] == ["abc", "bca", "cab"] * 2


def test_the_median_of_an_arm_is_its_own() -> None:
    arms = Bench(seconds=0.0, least=9).arms(
        {"slow": lambda n: time.sleep(0.02), "quick": lambda n: None}, 2, torch.device("cpu")
    )
    assert arms["slow"].ms >= 20 > arms["quick"].ms
    assert arms["slow"].p20 <= arms["slow"].ms <= arms["slow"].p80


def test_time_ends_the_turns() -> None:
    count = []
    Bench(seconds=0.2, least=2, most=10**6).arms(
        {"a": lambda n: count.append(time.sleep(0.02))}, 2, torch.device("cpu")
    )
    assert 5 <= len(count) <= 40


def test_weights_exceed_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert Bench(cache=1000).sets(100, cpu) == 10 * TIMES_THE_CACHE
    assert Bench(cache=1000).sets(10**6, cpu) == 2
    assert Bench(cache=10**9).sets(8, cpu) == 1024
    monkeypatch.setattr("fxfuse.machine.free_bytes", lambda device: 10_000)
    with pytest.raises(TuningError, match=r"50 sets of weights of 101 bytes .* 10000 bytes are free on cpu"):
        Bench(cache=1010).sets(101, cpu)
    assert Bench(cache=500).sets(100, cpu) == 25


# --- models and patterns ----------------------------------------------------------------------------------------------


def test_a_model_is_tuned_and_its_next_compile_chooses_by_it() -> None:
    model, x = Tiny(layers=3), batch()
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    told: list[str] = []
    (entry,) = tune(model, (x,), inner="eager", bench=QUICK, progress=told.append)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
    assert entry.shape.pattern == f"fxfuse::{PATTERN}"
    assert (entry.shape.rows, dict(entry.shape.sizes)) == (10, SIZES)
    assert {LEFT_ALONE, "plain", "stacked"} <= set(entry.arms)
    assert "stacked_biased" in entry.skipped
    assert "needs a cuda device" in entry.skipped["triton_decode"] or torch.cuda.is_available()
    assert len(told) == 1
    assert results.current().entries == (entry,)
    with torch.no_grad(), recorded() as reports:
        torch.compile(model, backend=fxfuse.Backend(inner="eager"))(x)
    for site in reports[0].sites:
        assert "measured" in f"{site.why_kernel}{site.reason}"
        assert "not measured" not in f"{site.why_kernel}{site.reason}"


def test_one_entry_for_each_shape() -> None:
    model = torch.nn.Sequential(Tiny(layers=2), Tiny(layers=1, inner=48))
    entries = tune(model, (batch(),), inner="eager", bench=QUICK, keep=False)
    assert sorted(dict(e.shape.sizes)["intermediate"] for e in entries) == [32, 48]
    assert results.current().entries == ()


def test_an_arm_that_computes_something_else_or_fails_is_no_arm(register: Any) -> None:
    def wrong(x: Any, weight: Any, gate: Any, up: Any, down: Any, *, eps: Any, norm: str, act: str) -> Any:
        return torch.nn.functional.linear(torch.nn.functional.linear(x, gate), down)

    def fails(x: Any, weight: Any, gate: Any, up: Any, down: Any, *, eps: Any, norm: str, act: str) -> Any:
        raise ZeroDivisionError("inside the kernel")

    register("right", plain)
    register("wrong", wrong)
    register("fails", fails)
    (entry,) = tune(Tiny(layers=1), (batch(),), inner="eager", bench=QUICK, keep=False)
    assert "right" in entry.arms
    assert "wrong" not in entry.arms
    assert "is off by" in entry.skipped["wrong"]
    assert entry.skipped["fails"] == "ZeroDivisionError: inside the kernel"


def test_a_pattern_is_tuned_without_a_model() -> None:
    entries = tune_pattern(
        PATTERN, SIZES, rows=(1, 4), dtypes=(torch.float32, torch.bfloat16), variant={"act": "gelu"},
        operands=("down_bias",), inner="eager", bench=QUICK,
    )  # fmt: skip
    assert [(e.shape.dtype, e.shape.rows) for e in entries] == [
        ("float32", 1), ("float32", 4), ("bfloat16", 1), ("bfloat16", 4),
    ]  # fmt: skip
    assert all(dict(e.shape.variant)["act"] == "gelu" and "down_bias" in e.shape.operands for e in entries)
    assert list(results.current().entries) == entries


def test_every_sibling_counts() -> None:
    pytest.importorskip("fxfuse_patterns.rms_norm_qkv")
    (entry,) = tune_pattern("rms_norm_qkv", {"hidden": 16, "out": 8}, rows=(3,), inner="eager", bench=QUICK, keep=False)
    widths = {name: size for name, size in entry.shape.sizes if "[" in name}
    assert widths == {"projections[0]": 8, "projections[1]": 8}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"sizes": {"hidden": 16}}, "has no size for intermediate, out; given hidden=16"),
        ({"variant": {"activation": "silu"}}, "unknown choice of rms_norm_gated_mlp 'activation'"),
        ({"variant": {"act": "sliu"}}, "Did you mean 'silu'?"),
        ({"operands": ("bias",)}, "unknown operand of rms_norm_gated_mlp 'bias'"),
        ({"operands": ("gate_bias",), "variant": {"proj": "packed"}}, "has no form with proj=packed, gate_bias"),
        ({"inner": "inducto"}, "Did you mean 'inductor'?"),
        ({"pattern": "rms_norm_gated"}, "unknown pattern"),
    ],
)
def test_what_cannot_be_meant_is_refused(more: dict[str, Any], said: str) -> None:
    given = {"pattern": PATTERN, "sizes": SIZES, "inner": "eager", **more}
    with pytest.raises(fxfuse.OptionError) as refused:
        tune_pattern(given.pop("pattern"), given.pop("sizes"), rows=(1,), bench=QUICK, **given)
    assert said in str(refused.value)


@pytest.mark.gpu
def test_on_a_card_calls_are_recorded_and_timed_by_the_device() -> None:
    bench = Bench(seconds=0.5)
    sizes = {"hidden": 1024, "intermediate": 3072, "out": 1024}
    (entry,) = tune_pattern(PATTERN, sizes, rows=(1,), device="cuda", inner="eager", bench=bench)
    assert entry.machine.device == "cuda"
    assert {LEFT_ALONE, "plain", "stacked", "triton_decode"} <= set(entry.arms)
    bytes_read = 3 * 1024 * 3072 * 2
    for name, arm in entry.arms.items():
        assert arm.ms > bytes_read / 10e12 * 1e3, f"{name} reads faster than any memory"
    (again,) = tune_pattern(PATTERN, sizes, rows=(1,), device="cuda", inner="eager", bench=bench, keep=False)
    for name, arm in again.arms.items():
        assert 0.7 < arm.ms / entry.arms[name].ms < 1.4


# --- the command ------------------------------------------------------------------------------------------------------

ASKED = ["tune", "--pattern", PATTERN, "--shapes", "hidden=16,intermediate=32,out=16", "--rows", "2"]
ASKED += ["--inner", "eager", "--seconds", "0", "--cache-mib", "1", "--device", "cpu"]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASKED, "--dry-run"]) == 0
    assert "hidden=16" in capsys.readouterr().out
    assert results.current().entries == ()
    assert main(ASKED) == 0
    out = capsys.readouterr().out
    assert "stacked_biased was not measured: it derives a weight from gate_bias" in out
    assert f"kept in {results.folder()}" in out.replace("\n", "")
    assert len(results.current().entries) == 1
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["of this machine"] == 1


def test_a_shape_that_cannot_be_measured_is_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [a if a != "hidden=16,intermediate=32,out=16" else "hidden=16" for a in ASKED]
    assert main(asked) == 1
    assert "has no size for intermediate, out" in capsys.readouterr().out


@pytest.mark.parametrize(("flag", "value"), [("--shapes", "llama"), ("--shapes", "hidden=x"), ("--rows", "0"),
                                             ("--variant", "act"), ("--dtypes", "fp8")])  # fmt: skip
def test_wrong_flags_are_refused(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tune", flag, value])
    assert ended.value.code == 2
    assert value in capsys.readouterr().err
