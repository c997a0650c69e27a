"""docs/reuse.md: the text that stands in it, with the tables made from the figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bench.reuse import calls, spread
from bench.reuse.tables import lines

BEGIN, END = "<!-- figures: python -m bench.reuse --page docs/reuse.md -->", "<!-- end of figures -->"


def _tables(record: dict[str, Any]) -> list[str]:
    tables = []
    if "rows" in record:
        tables.append("\n".join(lines(record["rows"])))
    if "calls" in record:
        tables.append(calls.line(record["calls"]))
    if "coverage" in record:
        head = f"Tiny random models of {spread.LAYERS} layers in fp32, compiled by `aot_eager`; processor seconds."
        tables.append("\n".join([head, "", *spread.lines(record["coverage"])]))
    return tables


def write(page: str, figures: str) -> None:
    """Put the tables of ``figures`` into the page, between its two marks."""
    records: list[dict[str, Any]] = json.loads(Path(figures).read_text(encoding="utf-8"))
    parts = []
    for record in records:
        found = record["environment"]
        parts.append(
            f"{found['processor']}, {found['cores']} cores, {found['threads']} thread(s), torch {found['torch']}, "
            f"Python {found['python']}; load of the machine when it ended: {found['load']:.1f}.\n\n"
            + "\n\n".join(_tables(record))
        )
    file = Path(page)
    text = file.read_text(encoding="utf-8")
    inner = "\n\n".join(parts)
    between = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not between.search(text):
        raise ValueError(f"{page} has no place for figures: {BEGIN} ... {END}")
    file.write_text(between.sub(lambda _: f"{BEGIN}\n{inner}\n{END}", text), encoding="utf-8")
