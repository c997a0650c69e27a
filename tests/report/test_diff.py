"""`fxfuse diff`: what an upgrade broke is a line and an exit code."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.tiny import Tiny, batch

import fxfuse
from fxfuse.cli import main
from fxfuse.report import ReasonRecord, Report, Site
from fxfuse.report.diff import diff, render

P = "rms_norm_gated_mlp"


def site(number: int, **changes: Any) -> Site:
    made = Site(P, {"norm": "early"}, (f"layers.{number}.mlp",), "rewritten", kernel="plain", weights="separate")
    return replace(made, **changes)


def missed(number: int, reason: str = "the result of mul (mul_3) is read outside the site") -> Site:
    detail = ReasonRecord("EXTERNAL_USE", reason)
    facts: dict[str, Any] = {"outcome": "missed", "code": "EXTERNAL_USE", "reason": reason, "detail": detail}
    return site(number, **facts, kernel="", weights="")


BEFORE = Report(tuple(site(n) for n in range(4)))


@pytest.mark.parametrize(
    ("after", "kinds"),
    [
        ([site(n) for n in range(4)], []),
        ([site(n) for n in range(3)], ["lost"]),
        ([*(site(n) for n in range(3)), missed(3)], ["lost"]),
        ([site(n) for n in range(5)], ["gained"]),
        ([*(site(n) for n in range(4)), missed(4)], ["reason"]),
        ([*(site(n) for n in range(3)), site(3, variant={"norm": "late"})], ["variant"]),
        ([*(site(n) for n in range(3)), site(3, kernel="other")], ["kernel"]),
        ([*(site(n) for n in range(3)), site(3, weights="share")], ["kernel"]),
        ([site(n) for n in (3, 1, 0, 2)], []),
    ],
)
def test_kinds(after: list[Site], kinds: list[str]) -> None:
    assert [c.kind for c in diff(BEFORE, Report(tuple(after)))] == kinds


def test_a_reason_that_differs_in_a_number_is_the_same() -> None:
    two = Report((missed(0, "the result of mul (mul_9) is read outside the site"),))
    assert not diff(Report((missed(0),)), two)
    assert diff(Report((missed(0),)), Report((missed(0, "another"),)))


def test_sites_in_one_module_are_told_apart() -> None:
    assert [c.kind for c in diff(Report((site(0), site(0))), Report((site(0),)))] == ["lost"]


def test_equal_changes_are_one_line() -> None:
    text = render(diff(BEFORE, Report((site(0), *(missed(n) for n in (1, 2, 3))))))
    assert text.splitlines() == [
        "sites: 3 lost",
        f"  - lost    x3 {P}  layers.{{1-3}}.mlp",
        "      rewritten norm=early kernel=plain weights=separate -> "
        "missed EXTERNAL_USE: the result of mul (mul_3) is read outside the site",
    ]


def test_the_command_and_its_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.no_grad():
        fxfuse.explain(Tiny(3), (batch(),)).save(tmp_path / "a.json")
        off = {"kernels": {P: "off"}}
        fxfuse.explain(Tiny(3), (batch(),), options=off).save(tmp_path / "b.json")
        fxfuse.explain(Tiny(3), (batch(),), options={"weights": "inline"}).save(tmp_path / "c.json")
    a, b, c = (str(tmp_path / f"{n}.json") for n in "abc")
    assert main(["diff", a, a]) == 0
    assert capsys.readouterr().out == "no site differs\n"
    assert main(["diff", a, b]) == 1
    out = capsys.readouterr().out
    assert "sites: 3 lost" in out
    assert re.search(r"- lost +x3 rms_norm_gated_mlp +layers\.\{0-2\}\.norm \+ layers\.\{0-2\}\.mlp", out)
    assert "-> kept DISABLED: kernels={'rms_norm_gated_mlp': 'off'}" in out
    assert main(["diff", "--fail-on", "lost", a, b]) == 1
    assert main(["diff", b, a]) == 1
    assert main(["diff", "--fail-on", "lost", b, a]) == 0
    assert main(["diff", "--fail-on", "lost", a, c]) == 0
    assert main(["diff", a, c]) == 1


def test_what_cannot_be_read_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text('{"schema": 99}')
    assert main(["diff", str(tmp_path / "a.json"), str(tmp_path / "none.json")]) == 2
    assert "a report of schema 3 is needed; found 99" in capsys.readouterr().err
