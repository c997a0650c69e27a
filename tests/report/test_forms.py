"""A report survives JSON, is refused where it is of another schema, and is safe as HTML."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from support import Net, mlp, options, plain, rms, rows

import fxfuse
from fxfuse.report import SCHEMA, ReasonRecord, Report, Site


def a_report() -> Report:
    """A real one, with a rewritten site and a near miss."""

    def body(m: Net, x: torch.Tensor) -> torch.Tensor:
        h = rms(m, x)
        return plain(m, x) + mlp(m, h) + torch.nn.functional.linear(h, m.router).sum()

    return fxfuse.explain(Net(body), (rows(),), options=options(paths=["**"]))


@pytest.fixture(scope="module")
def report() -> Report:
    return a_report()


def test_json_round_trip(report: Report) -> None:
    again = Report.from_json(report.to_json())
    assert again == report
    assert again.rewritten == report.rewritten
    assert again.matched == report.matched
    assert again.to_json() == report.to_json()


def test_the_text_of_a_loaded_report_is_the_same(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "r.json")
    assert str(Report.load(tmp_path / "r.json")) == str(report)


def test_json_is_plain_data_with_its_schema(report: Report) -> None:
    data = json.loads(report.to_json())
    assert data["schema"] == SCHEMA
    assert {s["outcome"] for s in data["sites"]} == {"rewritten", "missed"}
    assert data["sites"][0]["pattern"] == "rms_norm_gated_mlp"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"schema": 999, "sites": []}', "999"),
        ('{"sites": []}', "None"),
        ("[1, 2]", "list"),
        ('"a"', "str"),
        ("3", "int"),
    ],
)
def test_another_schema_is_refused(text: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"a report of schema {SCHEMA} is needed; found '?{found}'?"):
        Report.load(path)


def test_what_is_no_json_is_a_value_error() -> None:
    with pytest.raises(ValueError):
        Report.from_json("no json")


@pytest.mark.parametrize("name", ["r.json", "r.txt", "r.html"])
def test_saved_by_suffix(name: str, report: Report, tmp_path: Path) -> None:
    path = tmp_path / name
    report.save(path)
    report.save(str(path))  # over an older one
    assert path.read_text(encoding="utf-8")[0] == {"json": "{", "txt": "f", "html": "<"}[name.split(".")[1]]
    assert [p.name for p in tmp_path.iterdir()] == [name], "no temporary file is left"


@pytest.mark.parametrize("name", ["r.yaml", "r", "r.JSON", "json"])
def test_another_suffix_is_an_error(name: str, report: Report, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a report is saved as \.json, \.txt, \.html; given '.*" + re.escape(name)):
        report.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_saving_into_no_folder_is_an_error(report: Report, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no_such_folder"):
        report.save(tmp_path / "no_such_folder" / "r.json")


def test_html_escapes_what_a_model_can_name() -> None:
    evil = "<script>alert('&')</script>"
    detail = ReasonRecord("OP", evil, graph_text=evil, graph_line="a.py:1", graph_node="n")
    page = Report((Site(evil, {evil: evil}, (evil,), "missed", "OP", evil, detail=detail),), notes=(evil,)).to_html()
    assert evil not in page
    assert "&lt;script&gt;" in page
    assert page.startswith("<!doctype html>")
    assert not re.search(r"\bsrc=", page), "self-contained"
    assert all(h.startswith("#") for h in re.findall(r"href=\"([^\"]*)", page))


def test_html_holds_the_text(report: Report) -> None:
    assert "rms_norm_gated_mlp: 1 rewritten, 1 missed" in report.to_html()


def test_reports_are_bounded_and_newest_last() -> None:
    from fxfuse.report import keep

    made = [Report(name=str(i)) for i in range(300)]
    for one in made:
        keep(one)
    kept = fxfuse.reports()
    assert kept[-1] is made[-1]
    assert len(kept) <= 256
