"""What differs between two summaries, of two versions of transformers, of fxfuse or of torch.

python -m bench.coverage diff A.json B.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.coverage.summary import SCHEMA, short, status


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.coverage diff", description="What differs between two summaries of coverage."
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    args = parser.parse_args(argv)
    before, after = load(args.before), load(args.after)
    lines = list(differences(before, after))
    print(f"{_title(before)} -> {_title(after)}: {len(lines)} differences")
    print("\n".join(lines))
    return 1 if any(is_loss(line) for line in lines) else 0


def load(file: Path) -> dict[str, Any]:
    """A summary.

    Raises:
        ValueError: the file is none, or one of another schema.
    """
    data = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"{file} is no summary of schema {SCHEMA}, as `python -m bench.coverage page` writes it.")
    return data


def differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """One line each; those that say ``LOST`` are sites or models that worked before."""
    old = {a["name"]: a for a in before["architectures"]}
    new = {a["name"]: a for a in after["architectures"]}
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            yield f"{name}: only in the first"
        elif name not in old:
            yield f"{name}: only in the second"
        else:
            yield from _of_one(name, old[name], new[name])


def _of_one(name: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    was, is_now = status(old), status(new)
    if was != is_now:
        yield f"{name}: {was} -> {is_now}" + ("  LOST" if was == "ok" else "")
    for pattern in sorted(old["patterns"].keys() | new["patterns"].keys()):
        a, b = old["patterns"].get(pattern, _NOTHING), new["patterns"].get(pattern, _NOTHING)
        if (a["present"], a["rewritten"]) != (b["present"], b["rewritten"]):
            lost = "  LOST" if b["rewritten"] < a["rewritten"] and short(b) > short(a) else ""
            yield f"{name}: {pattern} {a['rewritten']} of {a['present']} -> {b['rewritten']} of {b['present']}{lost}"
        elif a["variants"] != b["variants"]:
            yield f"{name}: {pattern} {', '.join(a['variants'])} -> {', '.join(b['variants'])}"


_NOTHING: dict[str, Any] = {"present": 0, "rewritten": 0, "variants": []}


def is_loss(line: str) -> bool:
    return line.endswith("LOST")


def _title(summary: dict[str, Any]) -> str:
    return f"transformers {summary['transformers']}, torch {summary['torch']}"
