"""What a run found, made small: per architecture and pattern, what is there and what became of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.coverage.arms import ALL, DEFAULT
from bench.coverage.oracle.counting import BESIDE

SCHEMA = 1
FIRST = "fp32 forward"
IN_RUN = {"moe_experts": "bf16 forward", "linear_cross_entropy": "bf16 backward"}
"""Patterns that are in models of this run only."""


def summarise(folder: Path) -> dict[str, Any]:
    """The summary of a folder of records: plain data, sorted, without times."""
    import torch
    import transformers

    records = [json.loads(f.read_text(encoding="utf-8")) for f in sorted(folder.glob("*.json"))]
    return {
        "schema": SCHEMA,
        "transformers": transformers.__version__,
        "torch": torch.__version__.partition("+")[0],
        "architectures": [_architecture(r) for r in records],
    }


def _architecture(record: dict[str, Any]) -> dict[str, Any]:
    runs = {name: _run(run) for name, run in sorted(record["runs"].items())}
    patterns: dict[str, Any] = {}
    beside: dict[str, int] = {}
    for name in (FIRST, *sorted(record["runs"])):
        run = record["runs"].get(name, {})
        if "present" not in run:
            continue
        beside = beside or {k: n for k in BESIDE if (n := run["present"].get(k, 0))}
        for pattern, arm in run["arms"].items():
            if pattern in (ALL, DEFAULT):
                continue
            row = _pattern(pattern, arm, run)
            first = patterns.setdefault(pattern, row)
            if any(row[k] != first[k] for k in ("present", "rewritten")):
                first.setdefault("elsewhere", {})[name] = {k: row[k] for k in ("present", "rewritten", "default")}
    head = {k: record[k] for k in ("name", "class", "kind", "family")}
    seen = {p: row for p, row in patterns.items() if row["present"] or row["rewritten"] or "elsewhere" in row}
    arms = {p: record["runs"].get(IN_RUN.get(p, FIRST), {}).get("arms", {}).get(p) for p in sorted(patterns)}
    misses = {p: rows for p, arm in arms.items() if arm is not None and (rows := _misses(arm, p))}
    return {**head, "runs": runs, "patterns": dict(sorted(seen.items())), "beside": beside, "misses": misses}


def _misses(arm: dict[str, Any], pattern: str) -> list[dict[str, Any]]:
    keys = ("code", "reason", "sites", "modules", "line")
    return [{k: r[k] for k in keys} for r in arm["rest"] if r["pattern"] == pattern and r["outcome"] == "missed"]


def _run(run: dict[str, Any]) -> dict[str, Any]:
    small = {k: run[k] for k in ("status", "error", "seeds", "graphs", "stock", "compared with eager only") if k in run}
    if "arms" in run:
        small["worst"] = max((a.get("part", 0.0) for a in run["arms"].values()), default=0.0)
        bad = {name: a["status"] for name, a in run["arms"].items() if a["status"] != "ok"}
        if bad:
            small["arms"] = bad
    return small


def _pattern(pattern: str, arm: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    default = run["arms"].get(DEFAULT, {})
    rows = [r for r in arm["rest"] if r["pattern"] == pattern]
    return {
        "present": run["present"].get(pattern),
        "rewritten": arm["rewritten"].get(pattern, 0),
        "default": default.get("rewritten", {}).get(pattern, 0),
        "kept": sum(r["sites"] for r in rows if r["outcome"] == "kept"),
        "variants": sorted(v.partition(" ")[2] for v in arm["variants"] if v.startswith(f"{pattern} ")),
    }


def short(row: dict[str, Any]) -> int:
    """How many of what is there were not rewritten."""
    return max(0, (row["present"] or 0) - row["rewritten"])


def status(architecture: dict[str, Any]) -> str:
    """One word for all runs of an architecture, the worst."""
    from bench.coverage.worker import worst_status

    return worst_status([r["status"] for r in architecture["runs"].values()])
