"""Sites as a function of the config: of one layer here, of the tiny config of bench/coverage in its last run."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from bench.coverage import architectures, tiny
from bench.coverage.arms import ALL
from bench.coverage.closed_forms import FORMS
from bench.coverage.difference import load
from bench.coverage.page import RESULTS
from bench.coverage.worker import examine


def counted(record: dict[str, Any], patterns: tuple[str, ...]) -> tuple[dict[str, int], dict[str, int]]:
    """What was rewritten with each pattern alone, and what the oracle saw."""
    assert record["status"] == "ok", record
    (run,) = record["runs"].values()
    return {p: run["arms"][p]["rewritten"].get(p, 0) for p in patterns}, {p: run["present"][p] for p in patterns}


@pytest.mark.parametrize("name", sorted(FORMS))
def test_one_layer(name: str) -> None:
    changes = {"num_layers" if name == "gpt_neo" else "num_hidden_layers": 1, **_LAYERED.get(name, {})}
    expect = FORMS[name](tiny.config_of(name, **changes))
    patterns = tuple(expect)
    record = examine(
        architectures.by_name(name), dtypes=["fp32"], modes=["forward"], patterns=patterns, together=[ALL], **changes
    )
    found, present = counted(record, patterns)
    assert found == expect
    assert {p: min(n, found[p]) for p, n in present.items()} == present


_LAYERED: dict[str, dict[str, Any]] = {"gpt_neo": {"attention_types": [[["global"], 1]]}}


def test_two_layers_and_more_in_the_last_run() -> None:
    """The summary that is kept has each pattern as often as the tiny config says."""
    file = RESULTS / f"transformers-{transformers.__version__}.json"
    if not file.exists():
        pytest.skip(f"no run over transformers {transformers.__version__} is kept")
    models = {a["name"]: a for a in load(file)["architectures"]}
    for name in sorted(FORMS.keys() & models.keys()):
        expect = FORMS[name](tiny.config_of(name))
        found = {p: models[name]["patterns"].get(p, {"rewritten": 0})["rewritten"] for p in expect}
        assert found == expect, name
    assert len(FORMS.keys() & models.keys()) >= 40
