"""docs/coverage.md and its data, from the records of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.coverage import headline
from bench.coverage.summary import IN_RUN, short, status, summarise
from bench.coverage.tiny import LARGE, TIMES

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
    causal = [r for r in summary["architectures"] if r["kind"] == "causal"]
    others = [r for r in summary["architectures"] if r["kind"] != "causal"]
    parts = [
        f"""\
# Coverage

The pattern library over every class of the causal-LM mapping of transformers {summary["transformers"]}, and over its
encoders and encoder-decoders; torch {summary["torch"]}. Made by `make coverage` (`python -m bench.coverage`), from tiny
random models that have every kind of layer at least once.

Each model is run in eager and in float64, captured by Dynamo once, and compiled with each pattern alone (named, so
every match is to be rewritten), with all patterns together, and with fxfuse's defaults. *Present* is counted by an
oracle that shares no code with fxfuse: it writes down one eager call (modules, torch functions, which value came from
where) and reads the source of norm classes. A result is *wrong* where its error against float64 breaks the contract
(twice eager's, plus a floor; maximum and RMS; the worst of the inputs). With *outliers* the same {len(LARGE)} channels
of embeddings, norms and linears' inputs are {TIMES:g} times as large as the others.""",
        "## Results\n\n" + "\n".join(_results(causal)),
        "## Patterns\n\nFamilies are directories of transformers; one counts as covered where all that is present in "
        "all of its models is rewritten. Sites are of the forward pass in fp32, with the pattern alone and named; "
        "`moe_experts` is in bf16, in which alone CPUs have the grouped product; `linear_cross_entropy` is in "
        "training, where transformers' models return the logits, too, so that there is no site.\n\n"
        + "\n".join(_goals(causal)),
        "## The headline pattern\n\n" + "\n".join(headline.section(causal)),
        "## What is near a pattern and is not it\n\n" + "\n".join(_beside(causal)),
        "## What is present and not rewritten\n\nThe other misses, and all of these with their modules and lines, are "
        "in the JSON in `bench/coverage/results`.\n\n" + "\n".join(_shortfalls(causal)),
        "## What does not run\n\n" + "\n".join(_failing(causal)),
        *_real(),
        "## Encoders and encoder-decoders\n\nThe mappings of text (`seq2seq`, `masked`), a class once, and of the "
        "others (`image`, `speech`, `text` towers) those that are spelled as language models are.\n\n"
        + "\n".join(_results(others)),
        "\n".join(_goals(others)),
        "\n".join(_shortfalls(others)),
        "\n".join(_failing(others)),
        "## Models\n\nRewritten / present, forward in fp32.\n\n" + "\n".join(_models(causal + others)),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _results(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    runs = sorted({name for r in rows for name in r["runs"]})
    kinds = ["ok", "wrong", "crash", "rewrite error", "not finished", "stock torch.compile fails", "eager fails",
             "not trainable", "no config"]  # fmt: skip
    yield "| run | inputs | architectures | " + " | ".join(kinds) + " |"
    yield "|---|" + "---:|" * (len(kinds) + 2)
    for name in runs:
        every = [r["runs"][name] for r in rows if name in r["runs"]]
        found = [run["status"] for run in every]
        inputs = min((run["seeds"] for run in every if "seeds" in run), default=0)
        yield f"| {name} | {inputs} | {len(found)} | " + " | ".join(str(found.count(k)) for k in kinds) + " |"


def _goals(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| pattern | families with it | covered | sites present | rewritten (named) | rewritten (default) |"
    yield "|---|---:|---:|---:|---:|---:|"
    for pattern in COUNTED:
        families: dict[str, list[dict[str, Any]]] = {}
        for r in rows:
            row = _row(r, pattern)
            if row is not None and row["present"]:
                families.setdefault(r["family"], []).append(row)
        if not families:
            continue
        every = [row for f in families.values() for row in f]
        covered = sum(all(short(row) == 0 for row in f) for f in families.values())
        present, named = (
            sum(row["present"] for row in every),
            sum(min(row["present"], row["rewritten"]) for row in every),
        )
        default = sum(row["default"] for row in every)
        yield f"| `{pattern}` | {len(families)} | {covered} | {present} | {named} | {default} |"


def _row(r: dict[str, Any], pattern: str) -> dict[str, Any] | None:
    """The counts of a pattern in one architecture."""
    row: dict[str, Any] | None = r["patterns"].get(pattern)
    run = IN_RUN.get(pattern)
    return row if row is None or run is None else {**row, **row.get("elsewhere", {}).get(run, {})}


def _beside(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| what | families | places | of which |"
    yield "|---|---:|---:|---|"
    for what in sorted({name for r in rows for name in r["beside"]}):
        families = {r["family"] for r in rows if what in r["beside"]}
        whole, done = 0, 0
        for r in rows:
            norms = r["patterns"].get("rms_norm") or {"present": 0, "rewritten": 0}
            whole += r["beside"].get(what, 0)
            if what in NORMS:
                left = max(0, norms["rewritten"] - (norms["present"] or 0))
                done += min(left, r["beside"].get(what, 0))
        note = f"{done} are sites of `rms_norm`" if what in NORMS else ""
        yield f"| {what} | {len(families)} | {whole} | {note} |"


NORMS = {"gated RMSNorm", "unweighted RMSNorm"}


def _real() -> Iterator[str]:
    """SmolLM2 and MiniLM, where `python -m bench.coverage real` has been run."""
    file = RESULTS / "real.json"
    if not file.exists():
        return
    data = json.loads(file.read_text(encoding="utf-8"))
    lines = [
        "## Published weights",
        "",
        "SmolLM2 answers greedily, MiniLM embeds sentences, in fp32 and compared with eager (`python -m bench.coverage "
        f"real`, torch {data['torch']}, inner compiler `{data['inner']}`). Of overlapping sites those are taken that "
        "cover most.",
        "",
        "| model | patterns | result | sites by pattern |",
        "|---|---|---|---|",
    ]
    for name, arms in data["models"].items():
        for arm, row in arms.items():
            sites = ", ".join(f"`{p}` {n}" for p, n in row["rewritten"].items())
            lines.append(f"| {name} | {arm} | {row['result']} | {sites or 'none'} |")
    yield "\n".join(lines)


def _shortfalls(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| model | pattern | present | rewritten | why (nearest rows of the report) |"
    yield "|---|---|---:|---:|---|"
    for r in rows:
        for pattern in r["patterns"]:
            row = _row(r, pattern)
            if row is not None and short(row) and pattern != "linear_cross_entropy":
                why = "; ".join(
                    f"{x['code']} ×{x['sites']}: {_cell(x['reason'])}" for x in r["misses"].get(pattern, ())[:3]
                )
                graphs = max((run.get("graphs", 1) for run in r["runs"].values()), default=1)
                why = why or (f"in none of {graphs} graphs" if graphs > 1 else "no row")
                yield f"| {r['name']} | `{pattern}` | {row['present']} | {row['rewritten']} | {why} |"


def _failing(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| model | run | what | message |"
    yield "|---|---|---|---|"
    for r in rows:
        for name, run in r["runs"].items():
            if run["status"] != "ok":
                what = run.get("error") or ", ".join(f"{arm}: {what}" for arm, what in run.get("arms", {}).items())
                yield f"| {r['name']} | {name} | {run['status']} | {_cell(what)[:220]} |"
            elif run.get("stock", 0) > 1:
                what = "the captured graph, without fxfuse, differs from eager; fxfuse's results are those of the graph"
                yield f"| {r['name']} | {name} | ok | {what} |"


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
