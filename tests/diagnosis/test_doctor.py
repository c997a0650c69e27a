"""`fxfuse doctor`: what runs here is said to, what cannot has its reason, and what is broken gives an exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fxfuse.cli import main
from tests.examples.packs import environment, run, write_pack

BROKEN_KERNEL = """
from fxfuse import Dim, Input, kernel, pattern
import torch

@pattern("theirs")
def theirs(x=Input(..., Dim("d"))):
    return torch.tanh(x) * 2

@kernel(theirs, name="here", device="cpu", rows=(1, 16), dtypes=(torch.float32,))
def here(x):
    return torch.tanh(x) * 2

kernel(theirs, name="elsewhere", device="cuda", implementation="theirs_patterns_missing:function")
kernel(theirs, name="lazy", device="cpu", implementation="{module}:function")
"""


def asked(capsys: pytest.CaptureFixture[str], *flags: str, code: int = 0) -> Any:
    assert main(["doctor", "--json", *flags]) == code
    return json.loads(capsys.readouterr().out)


def doctor(*sites: Path, code: int, **more: str) -> Any:
    command = [sys.executable, "-W", "error", "-m", "fxfuse.cli", "doctor", "--json"]
    return json.loads(run(command, code=code, env=environment(*sites, **more), cwd=sites[0]).stdout)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FXFUSE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "results"


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said where there is no CUDA device")
def test_the_record(capsys: pytest.CaptureFixture[str], own_cache: Path) -> None:
    found = asked(capsys)
    assert found["problems"] == []
    assert found["versions"]["torch"] == torch.__version__
    assert found["cards"] == []
    assert found["packs"]["fxfuse"]["error"] == ""
    kernels = found["patterns"]["fxfuse::rms_norm_gated_mlp"]["kernels"]
    assert kernels["plain"] == {
        "default": True, "backward": True, "devices": {"cpu": {"state": "runs", "why": ""}}
    }  # fmt: skip
    assert kernels["triton_decode"]["devices"]["cpu"] == {
        "state": "cannot run", "why": "needs a cuda device; this is cpu"
    }  # fmt: skip
    assert found["results"] == {
        "folder": str(own_cache), "writable": True, "entries": 0, "of other versions": 0, "of this machine": 0,
        "problems": [],
    }  # fmt: skip
    assert not own_cache.exists(), "looking makes no folder"


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for words in (torch.__version__, "fxfuse::rms_norm_gated_mlp", "triton_decode", "nothing is broken"):
        assert words in text


def test_what_is_broken_is_a_row_and_an_exit_code(tmp_path: Path) -> None:
    write_pack(tmp_path, "theirs", "theirs_patterns", BROKEN_KERNEL.format(module="not_installed"))
    write_pack(tmp_path, "missing", "missing_patterns", "import not_installed_anywhere")
    found = doctor(tmp_path, code=1)
    assert found["packs"]["missing"]["error"].startswith("ModuleNotFoundError: No module named")
    states = {
        name: made["devices"]["cpu"]["state"] for name, made in found["patterns"]["theirs::theirs"]["kernels"].items()
    }
    assert states == {"here": "runs", "elsewhere": "cannot run", "lazy": "broken"}
    assert found["patterns"]["theirs::theirs"]["kernels"]["here"]["devices"]["cpu"]["why"] == "float32, 1 to 16 rows"
    assert len(found["problems"]) == 2
    assert "pack 'missing'" in found["problems"][0]
    assert "kernel 'lazy' of theirs::theirs should run here" in found["problems"][1]
    assert "elsewhere" not in str(found["problems"]), "it cannot run here, and need not"


def test_the_same_pack_in_order(tmp_path: Path) -> None:
    code = BROKEN_KERNEL.format(module="theirs_lazily") + "\n"
    write_pack(tmp_path, "theirs", "theirs_patterns", code)
    (tmp_path / "theirs_lazily.py").write_text("def function(x):\n    return x\n")
    assert doctor(tmp_path, code=0)["problems"] == []


def test_results_that_cannot_be_read(capsys: pytest.CaptureFixture[str], own_cache: Path) -> None:
    own_cache.mkdir(parents=True)
    (own_cache / "half.json").write_text('{"schema": 1, "entries": [')
    (own_cache / "other.json").write_text('{"schema": 0, "entries": []}')
    with pytest.warns(UserWarning, match="does not use a results file"):
        found = asked(capsys, code=1)
    assert len(found["problems"]) == 2
    assert "half.json" in found["problems"][0]
    assert "schema 1 is needed; found 0" in found["problems"][1]
    assert asked(capsys, "--results", code=1) == []


def test_a_folder_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FXFUSE_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert "cannot be written" in asked(capsys, code=1)["problems"][0]
