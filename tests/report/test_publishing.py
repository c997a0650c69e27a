"""What a compile leaves by itself: one line, and files and trace artifacts where somebody asked for them."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.tiny import Tiny, batch, compiled
from support import Net, mlp, options, rms, rows

import fxfuse

ROOT = Path(__file__).parents[2]
TLPARSE = shutil.which("tlparse", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
PROGRAM = """
import torch
from end_to_end.tiny import Tiny, batch, compiled
with torch.no_grad():
    compiled(Tiny())(batch())
"""


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TORCH_", "FXFUSE_REPORT"))}
    clean["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env={**clean, **environment})
    assert done.returncode == 0, done.stderr
    return done


def test_one_line_for_a_compile(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fxfuse"), torch.no_grad():
        compiled(Tiny())(batch())
    (line,) = [r.getMessage() for r in caplog.records if r.name == "fxfuse"]
    assert line.startswith("fxfuse: rewrote 2 rms_norm_gated_mlp in 1 graph of ")
    assert "\n" not in line


def test_the_line_says_where_to_ask(caplog: pytest.LogCaptureFixture) -> None:
    def near(m: Any, x: torch.Tensor) -> torch.Tensor:
        return mlp(m, rms(m, x) + x)

    with caplog.at_level(logging.INFO, "fxfuse"):
        torch.compile(Net(near), backend=fxfuse.Backend(**options(inner="eager")))(rows())
    assert any(
        "1 missed" in r.getMessage() and "why: print(fxfuse.reports()[-1])" in r.getMessage() for r in caplog.records
    )


@torch.no_grad()
@pytest.mark.parametrize("how", ["option", "environment"])
def test_reports_are_written_whole(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"report_dir": str(tmp_path)} if how == "option" else {}
    if how == "environment":
        monkeypatch.setenv("FXFUSE_REPORT_DIR", str(tmp_path))
    compiled(Tiny(), **more)(batch())
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".html", ".json", ".txt"]
    (path,) = tmp_path.glob("*.json")
    assert fxfuse.Report.load(path).captured[0].whole


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What a run with ``TORCH_LOGS`` and ``TORCH_TRACE`` logs, and the trace that it leaves."""
    folder = tmp_path_factory.mktemp("trace")
    done = run(TORCH_LOGS="+fxfuse", TORCH_TRACE=str(folder))
    (log,) = folder.iterdir()
    return done.stderr, log


def test_torch_logs_and_the_structured_trace(traced: tuple[str, Path]) -> None:
    said, log = traced
    assert "fxfuse: rewrote 2 rms_norm_gated_mlp" in said
    assert "x2 layers.{0-1}.norm + layers.{0-1}.mlp" in said, "with a plus it is the whole report"
    lines = log.read_text(encoding="utf-8").splitlines()
    found = {}
    for at, line in enumerate(lines):
        brace = line.find("{")
        if brace >= 0 and '"fxfuse_report' in line:
            entry = json.loads(line[brace:])
            payload = []
            for more in lines[at + 1 :]:
                if not more.startswith("\t"):
                    break
                payload.append(more[1:])
            found[entry["artifact"]["name"]] = entry, "\n".join(payload)
    assert set(found) == {"fxfuse_report", "fxfuse_report_json"}
    entry, payload = found["fxfuse_report_json"]
    assert entry["artifact"]["encoding"] == "json"
    assert (entry["frame_id"], entry["frame_compile_id"]) == (0, 0), "listed under its compile"
    assert fxfuse.Report.from_json(payload).rewritten["rms_norm_gated_mlp"] == 2


@pytest.mark.skipif(TLPARSE is None, reason="tlparse is not installed")
def test_tlparse_lists_the_reports_under_their_compile(traced: tuple[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = [str(TLPARSE), str(traced[1]), "-o", str(out), "--no-browser"]
    done = subprocess.run(asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    index = json.loads((out / "compile_directory.json").read_text(encoding="utf-8"))
    (entry,) = [one for compile_id, one in index.items() if "0/0" in compile_id]
    names = {re.sub(r"_\d+\.\w+$", "", Path(one["name"]).name) for one in entry["artifacts"]}
    assert names >= {"fxfuse_report", "fxfuse_report_json"}
    (written,) = out.rglob("fxfuse_report_json*.json")
    assert fxfuse.Report.load(written).rewritten["rms_norm_gated_mlp"] == 2
    assert "fxfuse_report" in (out / "index.html").read_text(encoding="utf-8")


def test_quiet_where_nobody_asked(capfd: pytest.CaptureFixture[str]) -> None:
    with torch.no_grad():
        compiled(Tiny())(batch())
    assert capfd.readouterr() == ("", "")
