"""Every event and every file of docs/weights.md under every placement: right, without a recompile, and not doubled."""

from __future__ import annotations

import pytest
import torch

from bench.weights.events import EVENTS
from bench.weights.files import WRITERS, missing
from bench.weights.model import PLACEMENTS, Decoder, inputs
from bench.weights.table import _apart, held, other_calls, rows

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
