"""docs/debugging.md is what a user sees today; line numbers and measured errors aside."""

from __future__ import annotations

import re

from bench import debugging

MASKS = (
    (re.compile(r"\.py:\d+ *"), ".py:# "),
    (re.compile(r"\d\.\de[+-]\d+"), "#"),
    (re.compile(r"ulps off: .*|(both are as|fused is|eager is) near\w*"), "#"),
    (re.compile(r"reuse: .*"), ""),
)


def masked(text: str) -> str:
    for pattern, mask in MASKS:
        text = pattern.sub(mask, text)
    return text


def test_the_page_is_up_to_date() -> None:
    assert masked(debugging.PAGE.read_text(encoding="utf-8")) == masked(debugging.page())


def test_the_page_has_its_pictures() -> None:
    named = re.findall(r"\]\(pictures/(\w+\.png)\)", debugging.PAGE.read_text(encoding="utf-8"))
    assert len(named) >= 2
    for name in named:
        picture = (debugging.PICTURES / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) < 300_000
