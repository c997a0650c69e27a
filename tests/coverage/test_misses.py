"""Fifty misses, drawn at random from a run over all models and labelled by hand from the models' source.

``tests/data/misses.json`` has the labels; the codes are those of the run that is kept in ``bench/coverage/results``.
"""

from __future__ import annotations

import json
from pathlib import Path

from bench.coverage.difference import load
from bench.coverage.page import RESULTS

LABELS = Path(__file__).parents[1] / "data" / "misses.json"

CODES = {
    "structure": {"OP", "ARITY", "ALTERNATIVES"},  # other operations stand there
    "reader": {"EXTERNAL_USE"},  # all is there, and somebody else reads of it
    "value": {"BINDING"},  # all is there, of another value
}


def test_the_code_is_what_a_reader_of_the_source_says() -> None:
    labelled = json.loads(LABELS.read_text(encoding="utf-8"))
    models = {a["name"]: a for a in load(RESULTS / "transformers-5.23.0.json")["architectures"]}
    agree, others = 0, []
    for miss in labelled:
        rows = models[miss["model"]]["misses"].get(miss["pattern"], [])
        codes = {r["code"] for r in rows if r["modules"] == miss["modules"] and r["line"].startswith(miss["line"])}
        if codes & CODES[miss["label"]]:
            agree += 1
        else:
            others.append((miss["model"], miss["pattern"], miss["label"], codes))
    assert len(labelled) == 50
    assert agree >= 48, others
