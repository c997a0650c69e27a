"""The files of measurements: written as a whole, by several processes at once, inspected and reset by command."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fxfuse import machine, results
from fxfuse.cli import main
from fxfuse.machine import Machine
from fxfuse.results import LEFT_ALONE, Arm, Entry, Shape, Versions
from fxfuse.results.nearest import bucket, nearest
from fxfuse.results.store import ResultsError

CARD = Machine("cuda", "NVIDIA Test", "sm_90", 132, 80 << 30)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FXFUSE_CACHE_DIR", str(tmp_path))
    return tmp_path / "results"


def entry(rows: int = 8, *, times: dict[str, float] | None = None, on: Machine = CARD, **shape: Any) -> Entry:
    arms = {name: Arm(t, t * 0.9, t * 1.1) for name, t in (times or {LEFT_ALONE: 2.0, "fast": 1.0}).items()}
    base = Shape("pack::theirs", (("act", "silu"),), ("w", "x"), "bfloat16", rows, (("d", 4096),))
    return Entry(dataclasses.replace(base, **shape), on, Versions.here(), arms, {"slow": "needs more"}, "2026-01-01")


def test_what_is_saved_is_read_and_readable(folder: Path) -> None:
    (path,) = results.save([entry(8), entry(64)])
    assert Path(path) == folder / "nvidia-test-sm-90.json"
    assert list(results.current().entries) == [entry(8), entry(64)]
    record = json.loads(Path(path).read_text())["entries"][0]
    assert record["shape"]["variant"] == {"act": "silu"}
    assert record["arms"]["fast"] == {"ms": 1.0, "p20": 0.9, "p80": 1.1, "ratio": 2.0}
    assert record["machine"]["name"] == "NVIDIA Test"
    assert record["skipped"] == {"slow": "needs more"}


def test_a_new_measurement_replaces_the_old_one_of_its_key_only() -> None:
    results.save([entry(8), entry(64)])
    results.save([entry(8, times={LEFT_ALONE: 3.0, "fast": 1.0})])
    assert [e.ratio("fast") for e in results.current().entries] == [2.0, 3.0]
    older = dataclasses.replace(entry(8), versions=dataclasses.replace(Versions.here(), fxfuse="0.0.1"))
    results.save([older])
    assert len(results.current().entries) == 3
    assert len(results.current().usable) == 2


def test_machines_have_files_of_their_own(folder: Path) -> None:
    cpu = machine.machine_of("cpu")
    results.save([entry(), entry(on=cpu), entry(on=dataclasses.replace(cpu, units=cpu.units + 1))])
    assert len(list(folder.glob("*.json"))) == 3


WRITER = """
import sys
sys.path.insert(0, {here!r})
from test_choice_results import entry
from fxfuse import results
for i in range(20):
    results.save([entry(int(sys.argv[1]) * 100 + i)])
"""


def test_processes_that_write_at_once_lose_nothing(folder: Path) -> None:
    code = WRITER.format(here=os.path.dirname(__file__))
    running = [subprocess.Popen([sys.executable, "-c", code, str(i)]) for i in (1, 2)]
    while any(process.poll() is None for process in running):
        assert results.current().problems == (), "a file is never half written"
    assert [process.returncode for process in running] == [0, 0]
    assert {e.shape.rows for e in results.current().entries} == {i * 100 + j for i in (1, 2) for j in range(20)}
    assert [p.name for p in folder.iterdir() if p.suffix not in {".json", ".lock"}] == []


def test_a_process_sees_what_another_wrote() -> None:
    assert results.current().entries == ()
    code = WRITER.format(here=os.path.dirname(__file__))
    subprocess.run([sys.executable, "-c", code, "1"], check=True)
    assert len(results.current().entries) == 20
    assert results.current() is results.current()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema": 99, "entries": []}',
        '{"schema": 1, "entries": [{}]}',
        '{"schema": 1, "entries": 3}',
        "\x00",
    ],
)
def test_a_file_that_is_no_results_is_a_warning_and_is_replaced(folder: Path, text: str) -> None:
    (path,) = results.save([entry()])
    Path(path).write_text(text)
    from fxfuse import errors

    errors._WARNED.clear()
    with pytest.warns(UserWarning, match="does not use a results file"):
        assert results.current().entries == ()
    results.save([entry()])
    assert results.current().entries == (entry(),)
    assert results.current().problems == ()


@pytest.mark.parametrize(
    ("where", "value"),
    [(("arms", LEFT_ALONE), None), (("arms", "fast", "ms"), 0.0), (("arms", "fast", "ms"), float("inf")),
     (("shape", "rows"), "8"), (("machine",), {}), (("versions", "torch"), None)],
)  # fmt: skip
def test_an_entry_that_is_none_is_refused(where: tuple[str, ...], value: Any) -> None:
    record = entry().to_json()
    at = record
    for key in where[:-1]:
        at = at[key]
    if value is None:
        del at[where[-1]]
    else:
        at[where[-1]] = value
    with pytest.raises(ValueError):
        Entry.from_json(record)
    assert Entry.from_json(entry().to_json()) == entry()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FXFUSE_CACHE_DIR", str(tmp_path / "file"))
    assert results.current().entries == ()
    with pytest.raises(ResultsError, match="cannot be kept in"):
        results.save([entry()])


def test_the_default_folder_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FXFUSE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert results.folder() == str(tmp_path / "fxfuse" / "results")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert results.folder() == str(tmp_path / ".cache" / "fxfuse" / "results")


# --- commands ---------------------------------------------------------------------------------------------------------


def test_results_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--results"]) == 0
    assert "nothing was measured" in capsys.readouterr().out
    results.save([entry()])
    assert main(["doctor", "--results"]) == 0
    text = capsys.readouterr().out
    for words in ("pack::theirs", "NVIDIA Test (sm_90), bfloat16, 8 rows, d=4096", "fast 2.00x"):
        assert words in text
    assert main(["doctor", "--results", "--json"]) == 0
    assert [Entry.from_json(e) for e in json.loads(capsys.readouterr().out)] == [entry()]


def test_results_are_reset(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.save([entry(), entry(64), entry(pattern="pack::another")])
    assert main(["doctor", "--reset-results", "theirs"]) == 0
    assert "2 measurements of theirs forgotten" in capsys.readouterr().out
    assert [e.shape.pattern for e in results.current().entries] == ["pack::another"]
    assert main(["doctor", "--reset-results"]) == 0
    assert "1 measurement forgotten" in capsys.readouterr().out
    assert results.current().entries == ()
    assert list(folder.glob("*.json")) == []


# --- nearness ---------------------------------------------------------------------------------------------------------


def test_buckets_are_powers_of_two() -> None:
    assert [bucket(r) for r in (0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 4096, 4097)] == [0, 0, 1, 2, 2, 3, 3, 4, 4, 5, 12, 13]


def test_the_card_comes_before_the_shape() -> None:
    other = dataclasses.replace(CARD, name="NVIDIA Other", units=66)
    entries = [entry(8, on=other), entry(32)]
    assert nearest(entries, entry(8).shape, CARD) == entries[1]
    assert nearest(entries, entry(8).shape, other) == entries[0]
    assert nearest(entries, entry(8).shape, dataclasses.replace(CARD, arch="sm_100")) is None


def test_of_cards_the_one_of_like_size_is_nearest() -> None:
    small, large = (
        dataclasses.replace(CARD, name=n, units=u, memory=m << 30) for n, u, m in (("a", 48, 24), ("b", 144, 96))
    )
    assert nearest([entry(on=small), entry(on=large)], entry().shape, CARD) == entry(on=large)


def test_one_row_is_like_no_other() -> None:
    assert nearest([entry(2)], entry(1).shape, CARD) is None
    assert nearest([entry(1)], entry(2).shape, CARD) is None
    assert nearest([entry(1)], entry(0).shape, CARD) == entry(1)
    assert nearest([entry(2)], entry(8).shape, CARD) == entry(2)
    assert nearest([entry(2)], entry(9).shape, CARD) is None
