"""A broken pattern, or a broken kernel, is seen broken: exit code 1, and a message that says what is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from checking.faulty import EVERYTHING, FAULTS, HEAD, RIGHT

from fxfuse.cli import main


def check(folder: Path, text: str, *flags: str) -> tuple[int, list[dict]]:
    """The exit code and the patterns' records of `fxfuse check` on a file of this text."""
    file, out = folder / f"pack_{abs(hash(text))}.py", folder / "out.json"
    file.write_text(HEAD + text)
    code = main(["check", str(file), "--json", str(out), *flags])
    return code, json.loads(out.read_text())["patterns"]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, kind, says = FAULTS[fault]
    code, (record,) = check(tmp_path, text, "--quick")
    found = [f for f in record["failures"] if f["check"] == kind and re.search(says, f["what"])]
    assert code == 1
    assert found, record["failures"]
    assert record["pattern"] in capsys.readouterr().out


def test_what_is_right_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, (record,) = check(tmp_path, RIGHT)
    out = capsys.readouterr().out
    assert code == 0, out
    assert record["passed"]
    assert record["failures"] == []
    assert record["kernels"] == ["reference", "same"]
    assert set(record["numerics"]) == set(record["gradients"]) == {"reference", "same"}
    assert "1 of 1 patterns passed" in out


@pytest.mark.parametrize("flags", [(), ("--quick",)])
def test_all_that_authoring_can_say(flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Siblings, several outputs, relations of sizes, keep, dtype sets, order, choices at each place."""
    code, records = check(tmp_path, EVERYTHING, *flags)
    assert code == 0, capsys.readouterr().out
    by_name = {record["pattern"]: record for record in records}
    assert set(by_name) == {"siblings", "add_norm", "halves", "kept_norm", "low_only", "in_order", "each_act"}
    assert by_name["siblings"]["variants"] == 4  # two and three siblings, with biases and without
    assert by_name["each_act"]["variants"] == 4
    assert all(record["mutants"][0] == record["mutants"][1] > 5 for record in records)
    assert all(record["respellings"][1] > 0 for record in records)
