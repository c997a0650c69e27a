"""docs/near_misses.md is what a user reads today; line numbers aside, which belong to files that change."""

from __future__ import annotations

import re

import pytest

from bench import near_misses

transformers = pytest.importorskip("transformers", reason="transformers is an extra")


def masked(text: str) -> str:
    return re.sub(r"\.py:\d+ *", ".py:# ", text)


def test_the_page_is_up_to_date() -> None:
    page = near_misses.PAGE.read_text(encoding="utf-8")
    made_with = re.search(r"transformers (\d[^ ,]*),", page)
    assert made_with is not None
    if made_with[1] != transformers.__version__:
        pytest.skip(f"the page was made with transformers {made_with[1]}; here is {transformers.__version__}")
    assert masked(page) == masked(near_misses.page())
