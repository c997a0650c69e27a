"""A spread of architectures, trained in bf16: no result is wrong, no compile fails that stock torch.compile can do."""

from __future__ import annotations

import pytest

from bench.coverage import architectures
from bench.coverage.worker import examine

KNOWN = {a.name for a in architectures.everything()}


@pytest.mark.parametrize("name", [n for n in architectures.SPREAD if n in KNOWN])
def test_training_in_bf16(name: str) -> None:
    architecture = architectures.by_name(name)
    record = examine(architecture, dtypes=["bf16"], modes=["backward"], together=[], patterns=[PATTERN], seeds=1)
    assert record["status"] == "ok", record
    (run,) = record["runs"].values()
    assert run["arms"][PATTERN]["rewritten"].get(PATTERN, 0) == run["present"][PATTERN]


PATTERN = "rms_norm_gated_mlp"


def test_the_spread_is_wide_enough() -> None:
    assert len([n for n in architectures.SPREAD if n in KNOWN]) >= 25
