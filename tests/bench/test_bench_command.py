"""`fxfuse bench`: each suite runs on tiny shapes, goes on where it stopped, and refuses what cannot be meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fxfuse import results
from fxfuse.benchmarks import apart, everything, suites
from fxfuse.benchmarks.arms import ARMS, chosen
from fxfuse.benchmarks.arms import MODEL as MODEL_ARMS
from fxfuse.cli import main
from tests.bench.benching import MODEL, OP, PATTERN, bench, the_file, use_tiny


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_tiny(monkeypatch)
    monkeypatch.setenv("FXFUSE_CACHE_DIR", str(tmp_path / "cache"))


def test_op_is_measured_once_where_it_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*OP, "--arms", "eager", "inductor", "fxfuse"]
    assert bench("op", tmp_path / "r", *asked) == 0
    assert "2 measured" in capsys.readouterr().out
    file = the_file(tmp_path / "r")
    assert [cell["what"]["rows"] for cell in file.cells.values()] == [2, 3]
    assert file.rates == {"copy": 1e10, "fp32": 1e11}
    assert bench("op", tmp_path / "r", *asked, "--resume") == 0
    assert "0 measured, 2 were there already" in capsys.readouterr().out
    assert the_file(tmp_path / "r").cells == file.cells
    assert bench("op", tmp_path / "r", *asked, "kernel:plain", "--resume") == 0, "an arm is new"
    assert "2 measured" in capsys.readouterr().out
    assert all("kernel:plain" in cell["arms"] for cell in the_file(tmp_path / "r").cells.values())


def test_a_budget_leaves_a_valid_file_that_resume_goes_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*OP, "--arms", "fxfuse"]
    assert bench("op", tmp_path, *asked, "--budget", "1e-9") == 0
    assert "0 measured, 2 left out: the time was up; --resume measures them" in capsys.readouterr().out
    assert the_file(tmp_path).cells == {}
    assert bench("op", tmp_path, *asked, "--resume") == 0
    assert {arm for cell in the_file(tmp_path).cells.values() for arm in cell["arms"]} == {
        "eager", "inductor", "fxfuse",
    }  # fmt: skip


def test_ctrl_c_keeps_the_cells_that_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = suites.op.measure, []

    def second_is_stopped(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(suites.op, "measure", second_is_stopped)
    assert bench("op", tmp_path, *OP, "--arms", "fxfuse") == 130
    assert len(the_file(tmp_path).cells) == 1


def test_a_model_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    assert bench("model", tmp_path, *MODEL) == 0
    (cell,) = the_file(tmp_path).cells.values()
    assert set(cell["arms"]) == {"eager", "inductor", "hand-stacked", "fxfuse", "fxfuse-share"}
    assert all(figures["tokens_as_eager"] for figures in cell["arms"].values())
    assert all(figures["decode_tokens_s"] > 0 for figures in cell["arms"].values())
    assert cell["arms"]["fxfuse-share"]["ran"] == "1 x stacked (share); 1 x stacked (share)"
    assert cell["skipped"]["reduce-overhead"] == "needs a cuda device"


def test_compile_and_memory_are_measured_in_processes_of_their_own() -> None:
    pytest.importorskip("transformers")
    seen: list[dict[str, Any]] = []

    def measured(suite: str, arm: str, had: Any = None) -> dict[str, Any]:
        what, arms = {"model": "tiny", "dtype": "fp32"}, chosen(ARMS[MODEL_ARMS], [arm, "reduce-overhead"])
        how: Any = {"prompt_tokens": 4, "layers": 1, "vocabulary": None, "inner": "eager", "had": had}
        apart.measure(suite, what, arms, torch.device("cpu"), progress=lambda _: None, keep=seen.append, **how)
        return seen[-1]

    compiled = measured("compile", "fxfuse")
    assert compiled["skipped"] == {"reduce-overhead": "needs a cuda device"}
    ours = compiled["arms"]["fxfuse"]
    assert ours["seconds"] > ours["own_seconds"] > 0
    assert ours["graphs"] == 2
    memory = measured("memory", "eager")["arms"]["eager"]
    assert memory["peak"] >= memory["held"] > memory["weights"] > 0
    had = {"arms": {"fxfuse": {"seconds": 7.0}}, "skipped": {}}
    assert measured("compile", "fxfuse", had)["arms"] == had["arms"], "what is there is not measured again"


def test_tuning_fills_the_results_that_compiles_choose_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("tune", tmp_path, *OP) == 0
    assert [entry.shape.rows for entry in results.current().entries] == [2, 3]
    assert bench("tune", tmp_path, *OP, "--resume") == 0
    assert "0 measured, 2 were there already" in capsys.readouterr().out


def test_everything_has_its_share_and_leaves_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    given: list[tuple[str, float | None]] = []
    real = suites.tasks

    def seen(suite: str, plan: Any, file: Any, budget: Any) -> Any:
        given.append((suite, budget.left))
        return real(suite, plan, file, budget)[:1] if suite in ("op", "tune", "model") else []

    monkeypatch.setattr(suites, "tasks", seen)
    models = ["--models", "tiny", "--layers", "1", "--prompt-tokens", "4"]
    assert bench("all", tmp_path, *OP, *models, "--budget", "600") == 0
    assert [suite for suite, _ in given] == ["kernels", "tune", "op", "model", "compile", "memory"]
    assert all(left is not None and 0 < left < 600 for _, left in given)
    file = the_file(tmp_path)
    assert {cell["suite"] for cell in file.cells.values()} == {"op", "model"}
    assert set(file.steps) == {"tests", "tune"}
    assert file.steps["tests"].startswith("not run")


def test_a_run_on_a_cuda_machine_takes_25_minutes_at_most() -> None:
    assert everything.CUDA_SECONDS == 25 * 60
    assert set(everything.SUITES) | {"tests"} == set(everything.SHARES)


@pytest.mark.parametrize(
    ("suite", "flags", "said"),
    [
        ("op", ["--arms", "induktor"], "unknown arm 'induktor'. Did you mean 'inductor'?"),
        ("op", ["--pattern", "rms_norm_gated"], "unknown pattern 'rms_norm_gated'"),
        ("model", ["--models", "smollm3"], "unknown model 'smollm3'. Did you mean 'smollm2'?"),
        ("memory", ["--arms", "kernel:plain"], "unknown arm 'kernel:plain'"),
    ],
)
def test_unknown_names_are_refused_with_the_valid_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suite: str, flags: list[str], said: str
) -> None:
    assert bench(suite, tmp_path / "r", "--device", "cpu", *flags) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "Valid: " in error
    assert not (tmp_path / "r").exists(), "nothing was begun"


@pytest.mark.parametrize(
    ("suite", "flags", "valid"),
    [
        ("op", ["--widths", "llama"], "llama-3-8b"),
        ("op", ["--dtypes", "fp8"], "bf16"),
        ("op", ["--rows", "0"], "whole number above 0"),
        ("op", ["--device", "tpu"], "cuda"),
        ("ops", [], "memory"),
    ],
)
def test_wrong_flags_are_refused_with_the_valid_ones(
    capsys: pytest.CaptureFixture[str], suite: str, flags: list[str], valid: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", suite, *flags])
    assert ended.value.code == 2
    assert valid in capsys.readouterr().err


def test_a_machine_without_cuda_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for suite in ("op", "all"):
        assert bench(suite, tmp_path / "r", "--device", "cuda") == 1
        assert "torch sees no CUDA device here" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_arms_are_listed_with_why_they_cannot_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("op", tmp_path / "r", "--device", "cpu", "--list") == 0
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("op")}
    assert lines["kernel:triton_decode"].rstrip().endswith("needs a cuda device")
    assert lines["kernel:plain"].rstrip().endswith("runs")
    assert lines["liger"].rstrip().endswith("needs a cuda device")


def test_a_cell_that_fails_is_said_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fxfuse.tuning.timing import Bench, TuningError

    real = Bench.sets

    def only_three(self: Bench, weights: int, device: torch.device) -> int:
        if not (tmp_path / "once").exists():
            (tmp_path / "once").touch()
            raise TuningError("there is no memory")
        return real(self, weights, device)

    monkeypatch.setattr(Bench, "sets", only_three)
    assert bench("op", tmp_path / "r", *OP, "--arms", "fxfuse") == 1
    assert f"op/{PATTERN}/tiny/fp32/2 was not measured: there is no memory" in capsys.readouterr().out
    assert list(the_file(tmp_path / "r").cells) == [f"op/{PATTERN}/tiny/fp32/3"]
