"""`fxfuse check` at the prompt: targets, flags, exit codes, and the project's own library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fxfuse.cli import main

SMALL = """
import torch
import torch.nn.functional as F
from fxfuse import Dim, Input, Param, pattern
D, N = Dim("d"), Dim("n")

@pattern("projected_silu")
def projected_silu(x=Input(..., D), w=Param(N, D)):
    return F.silu(F.linear(x, w))

@pattern("projected_tanh")
def projected_tanh(x=Input(..., D), w=Param(N, D)):
    return torch.tanh(F.linear(x, w))
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    return path


def test_a_table_and_a_record(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert main(["check", str(small), "--quick", "--seed", "4", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    for word in (
        "pattern",
        "variants",
        "positives",
        "respellings",
        "mutants refused",
        "kernels",
        "numerics",
        "gradients",
    ):
        assert word in text
    record = json.loads(out.read_text())
    assert set(record["versions"]) == {"fxfuse", "torch"}
    assert [p["pattern"] for p in record["patterns"]] == ["projected_silu", "projected_tanh"]
    assert all(p["passed"] and p["seed"] == 4 and p["failures"] == [] for p in record["patterns"])


def test_one_pattern_of_several(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(small), "--quick", "--pattern", "projected_tanh"]) == 0
    out = capsys.readouterr().out
    assert "projected_tanh" in out
    assert "projected_silu" not in out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["fxfues"], r"unknown pack 'fxfues'. Did you mean 'fxfuse'\? Valid: 'fxfuse'"),
        (["fxfuse::rms_nrom"], r"unknown pattern 'fxfuse::rms_nrom'.*Valid: .*'fxfuse::rms_norm_gated_mlp'"),
        (["fxfuse", "--pattern", "nothing"], r"unknown pattern of fxfuse, 'nothing'.* Valid: .*'rms_norm_gated_mlp'"),
        (["missing.py"], r"there is no file 'missing.py'"),
        (["fxfuse", "--json", "/no/such/folder/out.json"], r"--json: there is no folder"),
    ],
)  # fmt: skip
def test_usage_errors(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    assert main(["check", *args]) == 2
    assert re.search(says, capsys.readouterr().err)


def test_files_that_are_no_packs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    assert main(["check", str(tmp_path / "empty.py")]) == 2
    assert "defines no pattern" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "broken.py")]) == 2
    assert "ModuleNotFoundError" in capsys.readouterr().err


def test_a_pattern_that_is_wrong_as_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An error of definition is told as it is, and is no usage error."""
    (tmp_path / "wrong.py").write_text(
        "import fxfuse\n\n@fxfuse.pattern('no')\ndef no(x=fxfuse.Input()):\n    return x\n"
    )
    assert main(["check", str(tmp_path / "wrong.py")]) == 1
    assert "pattern 'no'" in capsys.readouterr().err


def test_a_pattern_of_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    """`make check` goes through all of them."""
    assert main(["check", "fxfuse::rms_norm", "--quick"]) == 0, capsys.readouterr().out
