"""docs/coverage.md and its data, from the records of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.coverage.summary import short, status, summarise

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "coverage.md"
RESULTS = Path(__file__).parent / "results"

COUNTED = ("rms_norm", "add_rms_norm", "rms_norm_gated_mlp", "gated_mlp", "rms_norm_qkv", "sibling_linears", "rope",
           "layer_norm_mlp", "linear", "linear_cross_entropy", "moe_experts")  # fmt: skip
IN_TABLE = COUNTED[:8]


def write(folder: Path, copy: Path | None = None, *, with_page: bool = True) -> None:
    """Write the summary to ``copy`` and, with the page, where it is kept; of a part of the models only to ``copy``."""
    summary = summarise(folder)
    text = json.dumps(summary, indent=1) + "\n"
    RESULTS.mkdir(exist_ok=True)
    kept = RESULTS / f"transformers-{summary['transformers']}.json"
    for target in filter(None, (copy, kept if with_page else None)):
        target.write_text(text, encoding="utf-8")
    if with_page:
        PAGE.write_text(page(summary), encoding="utf-8")



def page(summary: dict[str, Any]) -> str:
    """The whole page."""
    rows = summary["architectures"]
    parts = [
        f"""\
# Coverage

The pattern library over every class of the causal-LM mapping of transformers {summary["transformers"]}, and over the
encoders and encoder-decoders of text whose families have none; torch {summary["torch"]}. Made by `make coverage`
(`python -m bench.coverage`), from tiny random models that have every kind of layer at least once.

Each model is run in eager and in float64, captured by Dynamo once, and compiled with each pattern alone (named, so
every match is to be rewritten), with all patterns together, and with fxfuse's defaults; in fp32 and bf16, forward and
backward. *Present* is counted by an oracle that shares no code with fxfuse: it writes down one eager call (modules,
torch functions, which value came from where) and reads the source of norm classes. A result is *wrong* where its error
against float64 breaks the contract (twice eager's, plus a floor; maximum and RMS; {_SEEDS} inputs).""",
        "## Results\n\n" + "\n".join(_results(rows)),
        "## Patterns\n\nFamilies are directories of transformers; one counts as covered where all that is present in "
        "all of its models is rewritten. Sites are of the forward pass in fp32, with the pattern alone and named.\n\n"
        + "\n".join(_goals(rows)),
        "## What is near a pattern and is not it\n\n" + "\n".join(_beside(rows)),
        "## What is present and not rewritten\n\nThe other misses, and all of these with their modules and lines, are "
        "in the JSON in `bench/coverage/results`.\n\n" + "\n".join(_shortfalls(rows)),
        "## What does not run\n\n" + "\n".join(_failing(rows)),
        "## Models\n\nRewritten / present, forward in fp32.\n\n" + "\n".join(_models(rows)),
    ]
    return "\n\n".join(parts) + "\n"


_SEEDS = 3


def _results(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    runs = sorted({name for r in rows for name in r["runs"]})
    kinds = ["ok", "wrong", "crash", "rewrite error", "not finished", "stock torch.compile fails", "eager fails",
             "not trainable", "no config"]  # fmt: skip
    yield "| run | architectures | " + " | ".join(kinds) + " |"
    yield "|---|" + "---:|" * (len(kinds) + 1)
    for name in runs:
        found = [r["runs"][name]["status"] for r in rows if name in r["runs"]]
        yield f"| {name} | {len(found)} | " + " | ".join(str(found.count(k)) for k in kinds) + " |"


def _goals(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| pattern | families with it | covered | sites present | rewritten (named) | rewritten (default) |"
    yield "|---|---:|---:|---:|---:|---:|"
    for pattern in COUNTED:
        if not any(pattern in r["patterns"] for r in rows):
            continue
        families: dict[str, list[dict[str, Any]]] = {}
        for r in rows:
            row = r["patterns"].get(pattern)
            if row is not None and row["present"]:
                families.setdefault(r["family"], []).append(row)
        every = [row for f in families.values() for row in f]
        covered = sum(all(short(row) == 0 for row in f) for f in families.values())
        present, named = (
            sum(row["present"] for row in every),
            sum(min(row["present"], row["rewritten"]) for row in every),
        )
        default = sum(row["default"] for row in every)
        yield f"| `{pattern}` | {len(families)} | {covered} | {present} | {named} | {default} |"


def _beside(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| what | families | places |"
    yield "|---|---:|---:|"
    for what in sorted({name for r in rows for name in r["beside"]}):
        families = {r["family"] for r in rows if what in r["beside"]}
        yield f"| {what} | {len(families)} | {sum(r['beside'].get(what, 0) for r in rows)} |"


def _shortfalls(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| model | pattern | present | rewritten | why (nearest rows of the report) |"
    yield "|---|---|---:|---:|---|"
    for r in rows:
        for pattern, row in r["patterns"].items():
            if short(row):
                why = "; ".join(
                    f"{x['code']} ×{x['sites']}: {_cell(x['reason'])}" for x in r["misses"].get(pattern, ())[:3]
                )
                yield f"| {r['name']} | `{pattern}` | {row['present']} | {row['rewritten']} | {why or 'no row'} |"


def _failing(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| model | run | what | message |"
    yield "|---|---|---|---|"
    for r in rows:
        for name, run in r["runs"].items():
            if run["status"] != "ok":
                what = run.get("error") or ", ".join(f"{arm}: {what}" for arm, what in run.get("arms", {}).items())
                yield f"| {r['name']} | {name} | {run['status']} | {_cell(what)[:220]} |"


def _models(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| model | class | status | " + " | ".join(f"`{p}`" for p in IN_TABLE) + " |"
    yield "|---|---|---|" + "---:|" * len(IN_TABLE)
    for r in rows:
        cells = [_count(r["patterns"].get(p)) for p in IN_TABLE]
        yield f"| {r['name']} | {r['class']} | {status(r)} | " + " | ".join(cells) + " |"


def _count(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['rewritten']} / {row['present']}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
