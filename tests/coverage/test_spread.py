"""A spread of architectures, trained in bf16: no result is wrong, no compile fails that stock torch.compile can do."""

from __future__ import annotations

import pytest

from bench.coverage import architectures
from bench.coverage.arms import ALL, DEFAULT
from bench.coverage.worker import examine

SPREAD = (
    "afmoe", "apertus", "bart", "bert", "bitnet", "cohere2", "deepseek_v3", "exaone4", "falcon", "falcon_h1",
    "gemma3_text", "glm4", "gpt2", "gpt_neox", "gpt_oss", "granite", "helium", "jamba", "llama", "llama4_text",
    "mamba2", "modernbert-decoder", "nanochat", "nemotron", "olmo2", "phi3", "qwen3_5_text", "qwen3_moe",
    "t5:seq2seq", "zamba2",
)  # fmt: skip
KNOWN = {a.name for a in architectures.everything()}


@pytest.mark.parametrize("name", [n for n in SPREAD if n in KNOWN])
def test_training_in_bf16(name: str) -> None:
    record = examine(
        architectures.by_name(name), dtypes=["bf16"], modes=["backward"], together=[ALL, DEFAULT], patterns=[PATTERN]
    )
    assert record["status"] == "ok", record
    (run,) = record["runs"].values()
    assert run["arms"][PATTERN]["rewritten"].get(PATTERN, 0) == run["present"][PATTERN]


PATTERN = "rms_norm_gated_mlp"


def test_the_spread_is_wide_enough() -> None:
    assert len([n for n in SPREAD if n in KNOWN]) >= 25
