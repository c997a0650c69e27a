"""The text of a report, exact: grouping, ranges, near misses with both source lines, bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fxfuse.report import ReasonRecord, Report, Site
from fxfuse.report.text import merge_paths

P = "rms_norm_gated_mlp"
VARIANT = {"norm": "early", "proj": "separate", "act": "silu"}
REWRITTEN = Site(
    P,
    VARIANT,
    ("model.layers.0.mlp",),
    "rewritten",
    kernel="plain",
    weights="separate",
    matched_nodes=14,
    pattern_nodes=14,
)
READ_OUTSIDE = ReasonRecord(
    "EXTERNAL_USE",
    "the result of mul (mul_17) is read outside the site",
    pattern_line="patterns/rms_norm_gated_mlp.py:19",
    pattern_text="h = rms_norm(x, weight, eps)",
    graph_node="mul_17",
    graph_type="bf16[s0, 4096]",
    graph_line="modeling_x.py:88",
    graph_text="hidden = self.norm(hidden)",
    reader_node="linear_40",
    reader_path="model.layers.0.router",
    reader_line="modeling_x.py:91",
    reader_text="logits = self.gate(hidden)",
)
MISSED = Site(
    P,
    {"norm": "early", "act": "silu"},
    ("model.layers.0.mlp",),
    "missed",
    "EXTERNAL_USE",
    READ_OUTSIDE.sentence,
    matched_nodes=13,
    pattern_nodes=14,
    detail=READ_OUTSIDE,
)


def layers(site: Site, numbers: Any, template: str = "model.layers.{}.mlp", **changes: Any) -> tuple[Site, ...]:
    return tuple(replace(site, modules=(template.format(n),), **changes) for n in numbers)


def text(*sites: Site, **facts: Any) -> list[str]:
    return str(Report(sites, nodes=1234, **facts)).splitlines()


def test_thirty_equal_sites_are_one_line() -> None:
    assert text(*layers(REWRITTEN, range(30)), seconds={"match": 0.02, "rewrite": 0.01, "inner": 3.0}) == [
        f"fxfuse: rewrote 30 {P} in 1 graph of 1234 nodes (0.03 s)",
        "",
        f"{P}: 30 rewritten",
        "  x30 model.layers.{0-29}.mlp  norm=early proj=separate act=silu  kernel=plain weights=separate",
        "",
        "time: fxfuse itself 0.03 s (match 20 ms, rewrite 10 ms); inner compiler 3.0 s",
    ]


def test_what_is_known_of_a_kernels_speed_stands_beside_it() -> None:
    said = {
        "": "kernel=plain weights",
        "asked for by name": "kernel=plain weights",
        "the narrowest kernel that can run; not measured on this device": "kernel=plain (not measured) weights",
        "measured fastest: 1.31x as fast as left alone (a card, 8 rows)": "kernel=plain (1.31x as fast) weights",
    }
    for why, words in said.items():
        assert words in text(replace(REWRITTEN, why_kernel=why))[3]
    mixed = text(*(replace(site, why_kernel=why) for site, why in zip(layers(REWRITTEN, range(4)), said, strict=True)))
    assert [line.split()[0] for line in mixed[3:6]] == ["x2", "x1", "x1"]


def test_a_near_miss_shows_pattern_graph_and_reader() -> None:
    assert text(MISSED) == [
        "fxfuse: rewrote nothing in 1 graph of 1234 nodes; 1 missed (0.00 s)",
        "",
        f"{P}: 1 missed (1 reason)",
        "  x1 model.layers.0.mlp  13 of 14 nodes matched, norm=early act=silu",
        "     EXTERNAL_USE  the result of mul (mul_17) is read outside the site",
        "       pattern  patterns/rms_norm_gated_mlp.py:19                 h = rms_norm(x, weight, eps)",
        "       graph    mul_17: bf16[s0, 4096]  modeling_x.py:88          hidden = self.norm(hidden)",
        "       reader   linear_40 (model.layers.0.router)  modeling_x.py:91  logits = self.gate(hidden)",
    ]


def test_reasons_that_differ_in_a_node_number_are_one_reason() -> None:
    missed = [
        replace(site, reason=f"the result of mul (mul_{n}) is read outside the site")
        for n, site in enumerate(layers(MISSED, range(8)))
    ]
    lines = text(*layers(REWRITTEN, range(8, 32)), *missed)
    assert lines[0] == f"fxfuse: rewrote 24 {P} in 1 graph of 1234 nodes; 8 missed (0.00 s)"
    assert lines[2] == f"{P}: 24 rewritten, 8 missed (1 reason)"
    assert lines[3].startswith("  x24 model.layers.{8-31}.mlp  ")
    assert lines[4] == "  x8 model.layers.{0-7}.mlp  13 of 14 nodes matched, norm=early act=silu"


def test_other_attempts_are_listed_once_each_without_the_first() -> None:
    also = (
        ReasonRecord("LITERAL", "expected 1.0, found 2.0"),
        READ_OUTSIDE,
        ReasonRecord("LITERAL", "expected 1.0, found 2.0"),
    )
    assert text(replace(MISSED, also=also))[-1:] == ["     also: expected 1.0, found 2.0 (LITERAL)"]


def test_kept_sites_say_why() -> None:
    off = ReasonRecord("DISABLED", "outside paths=['a']")
    kept = Site(P, {"act": "silu"}, ("b",), "kept", "DISABLED", off.sentence, detail=off)
    assert text(kept)[2:] == [f"{P}: 1 kept", "  x1 b  act=silu", "     DISABLED  outside paths=['a']"]


@pytest.mark.parametrize(
    ("each", "count", "shown"),
    [
        (0, 1, ""),
        (1000, 1, " +1000 B"),
        (1024, 1, " +1.0 KiB"),
        (512, 3, " +1.5 KiB"),
        (1 << 20, 2, " +2.0 MiB"),
        (3 << 29, 2, " +3.0 GiB"),
    ],
)
def test_extra_bytes_are_those_of_the_group(each: int, count: int, shown: str) -> None:
    line = text(*layers(replace(REWRITTEN, weights="copy", extra_bytes=each), range(count)))[3]
    assert line.endswith(f"weights=copy{shown}")


def test_shared_bytes_are_no_extra() -> None:
    line = text(replace(REWRITTEN, weights="share", shared_bytes=3 << 20))[3]
    assert line.endswith("weights=share (3.0 MiB in place)")


def test_notes_and_several_patterns() -> None:
    lines = text(
        replace(REWRITTEN, notes=("weights are not placed by 'share': tied",)),
        replace(REWRITTEN, pattern="a_pattern"),
        notes=("a note of the compile",),
        graphs=2,
    )
    assert lines[0] == f"fxfuse: rewrote 1 a_pattern, 1 {P} in 2 graphs of 1234 nodes (0.00 s)"
    assert lines[2] == "a_pattern: 1 rewritten"
    assert "     note: weights are not placed by 'share': tied" in lines
    assert "note: a note of the compile" in lines


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": "other"},
        {"weights": "share"},
        {"variant": {**VARIANT, "act": "gelu"}},
        {"outcome": "kept"},
        {"modules": ("model.other.0.mlp",)},
        {"modules": ("model.layers.0.mlp", "model.layers.0.norm")},
    ],
)
def test_sites_that_differ_are_not_grouped(change: dict[str, Any]) -> None:
    assert sum(line.startswith("  x1 ") for line in text(REWRITTEN, replace(REWRITTEN, **change))) == 2


@pytest.mark.parametrize(
    ("groups", "merged"),
    [
        ([("a.0",), ("a.1",), ("a.2",)], "a.{0-2}"),
        ([("a.0",), ("a.2",), ("a.3",), ("a.10",)], "a.{0,2-3,10}"),
        ([("a.0.n", "a.0.m"), ("a.1.n", "a.1.m")], "a.{0-1}.n + a.{0-1}.m"),
        ([("a",), ("a",)], "a"),
        ([("",)], "(top level)"),
        ([()], "(top level)"),
        ([("a.1",), ("a.0",)], "a.{0-1}"),
    ],
)
def test_paths_are_merged(groups: list[tuple[str, ...]], merged: str) -> None:
    assert merge_paths(groups) == merged


def test_merged_paths_name_no_module_that_is_not_there() -> None:
    """Two numbers that vary together are not a product of ranges."""
    assert merge_paths([("a.0.b.0",), ("a.1.b.1",)]) != "a.{0-1}.b.{0-1}"


def test_an_empty_report() -> None:
    assert text() == ["fxfuse: rewrote nothing in 1 graph of 1234 nodes (0.00 s)"]
