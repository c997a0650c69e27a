"""`fxfuse explain`: a script's compiles or a model's, the part that was asked for, and what a newcomer sees first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from end_to_end.tiny import Tiny, batch
from rich.console import Console
from support import Net, mlp, options, plain, rms, rows

import fxfuse
from fxfuse import compat
from fxfuse.cli import main
from fxfuse.explanation.show import filtered, show
from fxfuse.report.hunks import hunk

SCRIPT = """
import sys
import torch
from end_to_end.tiny import Tiny, batch
model = Tiny(3)
compiled = torch.compile(model, backend={backend}, options={options})
with torch.no_grad():
    compiled(batch())
    compiled(batch())
print("arguments:", sys.argv[1:])
{more}
"""


def script(folder: Path, backend: str = "fxfuse", options: str = "{'inner': 'eager'}", more: str = "") -> str:
    path = folder / "program.py"
    path.write_text(SCRIPT.format(backend=repr(backend), options=options, more=more), encoding="utf-8")
    return str(path)


def test_a_script_is_run_and_its_compiles_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, record = tmp_path / "r.html", tmp_path / "r.json"
    assert main(["explain", "--html", str(page), "--json", str(record), script(tmp_path), "--steps", "3"]) == 0
    out = capsys.readouterr().out
    assert "arguments: ['--steps', '3']" in out
    assert "x3 layers.{0-2}.norm + layers.{0-2}.mlp  norm=early proj=separate act=silu" in out
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert fxfuse.Report.load(record).captured[0].whole


def test_a_script_for_inductor_is_compiled_by_fxfuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.compile
    given: list[dict[str, object]] = []

    def inductor(gm: torch.fx.GraphModule, examples: list[object], patches: dict[str, object]) -> object:
        given.append(patches)
        return gm.forward

    monkeypatch.setattr(compat, "compile_fx", inductor)
    assert main(["explain", script(tmp_path, "inductor", "{'max_autotune': False}")]) == 0
    out = capsys.readouterr().out
    assert "1 compiles by Inductor were compiled by fxfuse and Inductor" in out
    assert "3 rewritten" in out
    assert given == [{"max_autotune": False}]
    assert torch.compile is before


def test_a_script_that_fails_is_still_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", script(tmp_path, more="sys.exit(7)")]) == 7
    assert "3 rewritten" in capsys.readouterr().out
    torch._dynamo.reset()  # else the same code is not compiled again
    assert main(["explain", script(tmp_path, more="raise KeyError('why')")]) == 1
    captured = capsys.readouterr()
    assert "KeyError: 'why'" in captured.err
    assert "3 rewritten" in captured.out


def test_what_cannot_be_explained_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = tmp_path / "quiet.py"
    quiet.write_text("print('nothing')\n")
    for arguments, words in (
        ([str(quiet)], "compiled nothing that fxfuse could see"),
        (["missing.py"], "there is no script 'missing.py'"),
        ([], "a script, or a model by --hf: one of the two"),
        (["--pattern", "rms_norm_gated_mpl", str(quiet)], "Did you mean 'rms_norm_gated_mlp'?"),
        (["--at", "layers.9", script(tmp_path)], "--at 'layers.9' is no site of this report; there are: layers.0.norm"),
    ):
        assert main(["explain", *arguments]) == 1
        assert words in capsys.readouterr().err


def test_a_model_by_its_type(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    assert main(["explain", "--hf", "olmo2", "--layers", "2", "--only", "missed"]) == 0
    out = capsys.readouterr().out
    assert "tiny: it was named by its type" in out
    assert "x2 model.layers.{0-1}.post_attention_layernorm + model.layers.{0-1}.mlp" in out
    assert "OP  expected norm (mul), found add (hidden_states_9) in between" in out
    assert len(out.splitlines()) < 50, "two screens"


def test_a_place_where_nothing_is_near(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    place = "model.layers.0.post_attention_layernorm"
    arguments = ["--hf", "gemma2", "--layers", "1", "--at", place, "--pattern", "rms_norm_gated_mlp"]
    assert main(["explain", *arguments]) == 0
    out = capsys.readouterr().out
    assert f"x1 {place}  7 of 12 nodes matched" in out
    assert "shown: 1 of its 2 sites" in out


def some(m: Net, x: torch.Tensor) -> torch.Tensor:
    h = rms(m, x)
    return plain(m, x) + mlp(m, h) + torch.nn.functional.linear(h, m.router).sum()


@pytest.fixture(scope="module")
def report() -> fxfuse.Report:
    return fxfuse.explain(Net(some), (rows(),), options=options())


def test_the_hunk_of_a_rewritten_site() -> None:
    with torch.no_grad():
        report = fxfuse.explain(Tiny(1), (batch(),))
    lines = hunk(report, report.sites[0])
    (gate,) = [line for line in lines if line.startswith("- linear =")]
    assert gate == "- linear = F.linear(mul_1, layers.0.mlp.gate.weight, None)  # f32[2, 5, 32]"
    assert sum(line.startswith("-") for line in lines) >= 10
    assert sum(line.startswith("+") for line in lines) >= 10
    assert lines[0].startswith("  "), "with lines around it"


def test_the_hunk_of_a_near_miss_marks_the_node(report: fxfuse.Report) -> None:
    (missed,) = [s for s in report.sites if s.outcome == "missed"]
    assert missed.detail is not None
    (marked,) = [line for line in hunk(report, missed) if line.startswith(">")]
    assert marked.startswith(f"> {missed.detail.graph_node} = ")


def test_colours_on_a_terminal_and_none_in_a_file(report: fxfuse.Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for terminal in (True, False):
        console = Console(force_terminal=terminal, width=200, color_system="standard" if terminal else None)
        with console.capture() as captured:
            show(report, console, whole=report, code=True)
        assert ("\x1b[" in captured.get()) is terminal
        assert "EXTERNAL_USE" in captured.get()


@pytest.mark.parametrize(
    ("asked", "outcomes"),
    [
        ({"only": "missed"}, ["missed"]),
        ({"only": "kept"}, []),
        ({"pattern": "rms_norm_gated_mlp"}, ["rewritten", "missed"]),
        ({"pattern": "other"}, []),
    ],
)
def test_filters(report: fxfuse.Report, asked: dict[str, str], outcomes: list[str]) -> None:
    found = filtered(report, **{"at": None, "pattern": None, "only": None, **asked})
    assert [s.outcome for s in found.sites] == outcomes


def test_a_module_has_what_is_in_it() -> None:
    with torch.no_grad():
        report = fxfuse.explain(Tiny(12), (batch(),))
    for at, count in (("layers.1", 1), ("layers.1.mlp", 1), ("layers.1.mlp.gate", 1), ("layers", 12), ("layer", 0)):
        assert len(filtered(report, at=at, pattern=None, only=None).sites) == count
