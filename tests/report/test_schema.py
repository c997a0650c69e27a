"""The JSON is what schema.json says: every field described, none more, older versions read or refused."""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from typing import Any

import pytest
import torch
from end_to_end.tiny import Tiny, batch
from support import Net, mlp, options, plain, rms, rows

import fxfuse
from fxfuse.report import SCHEMA, Numbers, ReasonRecord, Report, Site
from fxfuse.report.parts import CanonicalRecord, CaptureRecord, DerivedRecord, PatternRecord, SourceRecord

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
DOCUMENT = json.loads(resources.files("fxfuse.report").joinpath("schema.json").read_text(encoding="utf-8"))


def validate(report: Report) -> Any:
    data = json.loads(report.to_json())
    jsonschema.Draft202012Validator(DOCUMENT).validate(data)
    return data


def some(m: Net, x: torch.Tensor) -> torch.Tensor:
    h = rms(m, x)
    return plain(m, x) + mlp(m, h) + torch.nn.functional.linear(h, m.router).sum()


@pytest.fixture(scope="module")
def report() -> Report:
    return fxfuse.explain(Net(some), (rows(),), options=options())


def test_the_document_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(DOCUMENT)
    assert DOCUMENT["properties"]["schema"] == {"const": SCHEMA}


def test_what_is_written_is_valid_and_comes_back(report: Report) -> None:
    validate(report)
    assert Report.from_json(report.to_json()) == report


@torch.no_grad()
@pytest.mark.parametrize("weights", ["separate", "share", "copy", "inline"])
def test_verified_and_derived_ones_are_valid(weights: str) -> None:
    named = {} if weights == "separate" else {"rms_norm_gated_mlp": "stacked"}
    report = fxfuse.verify(Tiny(), (batch(),), options={"weights": weights, "extra_memory": 1.0, "kernels": named})
    data = validate(report)
    assert data["sites"][0]["numbers"]["nearer"] in {"fused", "eager", "equal"}
    assert sum(data["sites"][0]["numbers"]["ulps"].values()) == batch().numel()
    derived = data["sites"][0]["derived"]
    assert bool(derived) == (weights != "separate")
    if derived:
        assert derived[0]["paths"] == ["layers.0.mlp.gate.weight", "layers.0.mlp.up.weight"]
        assert (derived[0]["type"], derived[0]["bytes"], derived[0]["placement"]) == ("f32[64, 16]", 4096, weights)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(schema=2),
        lambda d: d.update(extra=1),
        lambda d: d["sites"][0].pop("captures"),
        lambda d: d["sites"][0].update(outcome="perhaps"),
        lambda d: d["sites"][0].update(nodes=[1]),
        lambda d: d["captured"][0]["before"][0].pop(),
        lambda d: d["patterns"][0].update(tried=-1),
    ],
)
def test_the_schema_can_refuse(report: Report, change: Any) -> None:
    data = json.loads(report.to_json())
    change(data)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(DOCUMENT).validate(data)


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("site", Site), ("reason", ReasonRecord), ("numbers", Numbers),
        ("capture", CaptureRecord),
        ("derived", DerivedRecord), ("canonical", CanonicalRecord),
        ("pattern", PatternRecord), ("source", SourceRecord),
    ],
)  # fmt: skip
def test_every_field_is_described(name: str, record: Any) -> None:
    assert set(DOCUMENT["$defs"][name]["properties"]) == {f.name for f in dataclasses.fields(record)}


def old(report: Report) -> dict[str, Any]:
    """The report as version 2 had it."""
    data = json.loads(report.to_json())
    for site in data["sites"]:
        for key in ("body", "device", "pattern_line", "captures", "erased", "derived", "canonical"):
            del site[key]
    del data["patterns"], data["captured"]
    return {**data, "schema": 2}


def test_version_two_is_read(report: Report) -> None:
    again = Report.from_json(json.dumps(old(report)))
    assert again.rewritten == report.rewritten
    assert str(again) == str(report)
    assert again.sites[0].captures == ()
    assert "rms_norm_gated_mlp" in again.to_html()
    validate(again)


@pytest.mark.parametrize(
    "change", [lambda d: d.pop("sites"), lambda d: d["sites"][0].pop("pattern"), lambda d: d.update(x=1)]
)
def test_what_is_broken_says_so(report: Report, change: Any) -> None:
    data = old(report)
    change(data)
    with pytest.raises(ValueError, match="the file is no report that fxfuse wrote"):
        Report.from_json(json.dumps(data))
