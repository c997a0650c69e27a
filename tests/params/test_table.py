"""Every event and every file of docs/weights.md under every placement: right, without a recompile, and not doubled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bench.weights.model as tiny
import fxfuse
from bench.weights.cost import costs
from bench.weights.cycles import cycles
from bench.weights.events import EVENTS
from bench.weights.files import WRITERS, missing
from bench.weights.model import PLACEMENTS, Decoder, compiled, inputs
from bench.weights.page import page
from bench.weights.refused import CASES
from bench.weights.table import _apart, _differs, _graphs, held, other_calls, rows

OWN = sum(p.nbytes for p in Decoder().parameters())
COPIED = sum(b.mlp.gate.weight.nbytes + b.mlp.up.weight.nbytes for b in Decoder().layers)
UNWATCHED = {"share_memory", "to_meta"}
"""After these, weights cannot be kept any more: they are computed anew on each call, and what was kept is freed."""


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_row_of_the_table(placement: str) -> None:
    found = list(rows(placement))
    assert len(found) == len(EVENTS) + sum(missing(w) is None for w in WRITERS)
    assert [(row.event, row.right) for row in found if row.right] == []
    assert [(row.event, row.recompiles) for row in found if row.recompiles] == []
    grants = COPIED if placement == "copy" else 0
    events = {event.__name__ for event in EVENTS}
    for row in found:
        if row.event in events:
            assert row.before == OWN + grants, row
            assert row.after <= OWN + (0 if row.event in UNWATCHED and placement == "share" else grants), row


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_other_ways_to_call(placement: str) -> None:
    found = {row.event: row for row in other_calls(placement)}
    assert {name: row.right for name, row in found.items() if row.right} == {}
    assert {name: row.recompiles for name, row in found.items()} == {
        "functional_call": 0, "weights_as_arguments": 0, "called_in_bf16_between": 1,
    }  # fmt: skip


@pytest.mark.parametrize("kernel", ["cpu_packed", "cpu_kept_panels"])
def test_packed_weights_after_every_event(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that fill oneDNN's blocks, whose copies are opaque; of three parameters in each layer."""
    monkeypatch.setattr(tiny, "HIDDEN", 64)
    monkeypatch.setattr(tiny, "INNER", 128)
    fast = compiled(lambda model, x: model(x), "copy", weights="auto", kernels={"rms_norm_gated_mlp": kernel})
    with torch.no_grad():
        for event in EVENTS:
            torch.manual_seed(1)
            model, x = Decoder(), torch.randn(2, 8, 64)
            assert not _differs(fast, model, x)
            assert held(model) == sum(p.nbytes for p in model.parameters()) + 6 * 64 * 128 * 4, event
            other = event(model)
            for _ in range(2):
                assert not _differs(fast, model, x), event
                assert other is None or not _differs(fast, other, x), event
    assert [(s.kernel, s.weights) for s in fxfuse.reports()[-1].sites] == [(kernel, "copy")] * 2
    assert _graphs() == 1


def test_the_table_would_show_a_stale_weight_and_a_second_copy() -> None:
    """The negative twins of the two tests above."""
    model, x = Decoder(), inputs()
    with torch.no_grad():
        stale = model(x)
        for event in EVENTS[:5]:
            event(model)
            assert _apart(stale, model(x))
            stale = model(x)
    assert held(model) == OWN


def test_the_page_has_every_row_and_says_what_was_not_measured() -> None:
    written = (Path(__file__).parents[2] / "docs" / "weights.md").read_text(encoding="utf-8")
    for one in (*EVENTS, *WRITERS, *CASES):
        assert f"| `{one.__name__}` |" in written
    assert all(part in written for part in page({}).split("Not measured.\n"))
    assert page({}).count("Not measured.") == 6


def test_models_that_were_dropped_leave_nothing() -> None:
    warm, later = cycles(14, look_every=14)
    assert (warm.cycle, later.cycle) == (8, 14)
    assert (later.tensors, later.groups, later.copies) == (warm.tensors, warm.groups, warm.copies)


def test_the_check_is_cheap_under_both_placements() -> None:
    """Below 80 microseconds on an idle core (docs/weights.md); the bound here is for a busy one."""
    assert {cost.placement for cost in costs(turns=15) if cost.best < 240} == {"share", "copy"}
