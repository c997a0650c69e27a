"""docs/weights.md, from the figures of `python -m bench.weights`: the prose stands here, the tables are made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

PLACEMENTS = ("separate", "share", "copy", "inline")

INTRODUCTION = """# Weights: where they live, and that they are never stale

A kernel may want its weights otherwise than the model has them: gate and up as one matrix, a norm's scale folded
in, a layout that the GEMM reads faster. `torch.compile` cannot decide that. fxfuse does, from the graph alone, and
leaves the modules, parameters and checkpoints as they are. This page is made by `python -m bench.weights`; what a
part was not run for says "not measured".

## Transforms

A transform is a pure function of captured parameters. It is checked on fake tensors, and it composes:
`derive={"rows": pack(fold(stack("gate", "up"), "weight"))}` is one line of a kernel's declaration.

| transform | shapes | inverse | placements |
|---|---|---|---|
| `stack("a", "b", dim=0)` | (A, ...), (B, ...) -> (A + B, ...), any number | splits | share (dim 0), copy, inline |
| `experts("a", "b")` | E of (A, B) -> (E, A, B) | takes apart | share, copy, inline |
| `chunk("w", index, chunks=2, dim=0)` | (n * A, ...) -> (A, ...) | none | copy, inline |
| `transpose("w", 0, 1)` | (A, B) -> (B, A), contiguous | transposes back | copy, inline |
| `permute("w", 2, 0, 1)` | (A, B, C) -> (C, A, B), contiguous | permutes back | copy, inline |
| `pad("w", multiple, dim=0)` | (A, B) -> (A up to a multiple, B) | cuts off | copy, inline |
| `cast("w", dtype)` | the same | none | copy, inline |
| `scale("w", 0.5)`, `scale("w", "v")` | (A, ...) -> (A, ...), `v` (A,): rows | none | copy, inline |
| `fold("w", "s", offset=False)` | (out, in), `s` (in,) -> (out, in), times `s` or 1 + `s` | none | copy, inline |
| `panels("w")` | (out, in) in fp32 -> (out / 32 rounded up, in, 32) | cuts off, transposes back | copy |
| `pack("w")` | (out, in) in fp32 -> a handle (1,) of oneDNN's blocked layout | none | copy |

A name that stands for several parameters (`many`) stands for all of them: `stack("projections")`. Products are
formed in fp32 and rounded once.

## Placements

`weights=` names one for all patterns, or a dict for some; `"auto"` takes the first that serves.

- **separate**: the kernel reads the parameters as they are. Nothing is derived. The default on a CPU.
- **share**: one allocation holds the derived weight, and each parameter keeps a storage of its own inside it. No
  extra bytes; every write reaches it. `fxfuse.restore(model)` gives each parameter memory of its own again,
  bit-exact.
- **copy**: a second tensor, only within `extra_memory`, and never where autograd needs the sources. What changed is
  looked for on each call; `fxfuse.refresh(model)` serves after a write that leaves no trace.
- **inline**: the transform is part of the graph, and runs on each call.

`extra_memory` is a hard limit, parameter by parameter: the copies that a parameter is in, whichever graphs asked
for them, take at most that fraction of its bytes, as they lie in memory (tied ones once). A site that would pass it
says which bytes it wanted and does without. A kernel that was asked for by name and cannot have its copy raises. A
parameter is in one group of shared storage at most.
"""

LIMITS = """
## Limits

- A copy is watched by identity, address, layout, version and 16 elements of each source. A write that leaves no
  version (few elements through `.data` or NumPy) and misses all of these is not seen; the report says so wherever a
  copy is used.
- fxfuse's panels need AVX-512 and a C++ compiler (the inner compiler's own). Without them `extra_memory` gives an
  fp32 linear nothing by itself. oneDNN's packed weights (`cpu_packed`) run when named: they sum in one go, with more
  error than eager.
- MKL's packed layout is not offered: for one linear it allocates megabytes beside the weight (table above), which
  no `extra_memory` near 1 grants to layers of such sizes.
- `scale`, `fold`, `pad`, `chunk`, `permute` and `experts` have no measured kernel: `folded` (rms_norm_qkv) runs
  when named.
"""


def page(found: dict[str, Any], before: str = "") -> str:
    """The whole page. A part without figures stays as it was in the page `before`, or says that it has none."""
    parts = [INTRODUCTION, _events(found.get("table")), _refused(found.get("refused"))]
    parts += [_cost(found.get("cost")) + "\n" + _packed(found.get("packed"))]
    parts += [_cycles(found.get("cycles"), found.get("stock")), _ratios(found.get("smollm2")), LIMITS]
    old = {_heading(part): part for part in ("\n" + before).split("\n## ")[1:]}
    kept = [
        "## " + old[_heading(part[3:])] if "Not measured." in part and _heading(part[3:]) in old else part
        for part in map(str.lstrip, parts)
    ]
    return "\n".join(part.strip("\n") + "\n" for part in kept)


def _heading(part: str) -> str:
    return part.partition("\n")[0]


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def _events(table: list[dict[str, Any]] | None) -> str:
    text = """## After each event

`python -m bench.weights --table`. Every site of the graph is *rewritten* with the placement, and the models go through
one compiled function. A cell: whether the next calls are eager's, how many graphs were compiled anew, and the bytes
of the model's parameters with all that is derived from them (of files: bytes written), before and after. The same
table is a test. Where a weight cannot be kept any more (`tied` shares one with another site, `share_memory`), it is
computed anew on each call, and what was kept is freed. `to_meta` has no bytes after: eager and the compiled function
both raise. `functional_call` and `called_in_bf16_between` have a compiled function each. `weights_as_arguments` is the
exception: nothing is derived from tensors that are no parameters, and its site is left as it was (NOT_A_PARAM).
"""
    if not table:
        return f"{text}\nNot measured.\n"
    names = list(dict.fromkeys(row["event"] for row in table))
    cells = {(row["event"], row["placement"]): _cell(row) for row in table}
    body = [[f"`{name}`", *(cells.get((name, p), "not measured") for p in PLACEMENTS)] for name in names]
    return f"{text}\n{_table(['event', *PLACEMENTS], body)}"


def _cell(row: dict[str, Any]) -> str:
    what = row["right"] or "equal"
    return f"{what}, {row['recompiles']}, {row['before']:,} → {row['after']:,}"


def _refused(refused: list[dict[str, Any]] | None) -> str:
    text = """## What is not moved

With `weights="share"`. The site does without, says why, and is right before and after further writes. The tests
have FSDP2, DTensor and PEFT beside these. Storage that FSDP or ZeRO-3 manages is neither shared nor copied: it is
freed and filled again at the same address without a new version.
"""
    if not refused:
        return f"{text}\nNot measured.\n"
    body = [
        [f"`{r['case']}`", " ".join(filter(None, (r["outcome"], r["weights"]))), _plain(r["reason"])] for r in refused
    ]
    return f"{text}\n{_table(['parameters', 'site', 'reason'], body)}"


def _plain(reason: str) -> str:
    words = ["…/model.pt;" if word.endswith("model.pt;") else word for word in reason.split()]
    return " ".join(words).replace("|", "\\|")


def _cost(cost: list[dict[str, Any]] | None) -> str:
    text = "## Cost of a call\n\n`python -m bench.weights --cost`: the check of 200 fused sources, in microseconds.\n"
    if not cost:
        return f"{text}\nNot measured.\n"
    rows = [[c["placement"], c["sources"], f"{c['best']:.0f}", f"{c['median']:.0f}"] for c in cost]
    return f"{text}\n{_table(['placement', 'sources', 'best', 'median'], rows)}"


def _packed(packed: list[dict[str, Any]] | None) -> str:
    text = "What a packed weight takes, in bytes, as torch counts it.\n"
    if not packed:
        return f"{text}\nNot measured.\n"
    kinds = ("plain", "foreseen", "onednn", "mkl")
    rows = [[f"{p['rows']}, {p['columns']}", *(f"{p[kind]:,}" for kind in kinds)] for p in packed]
    return f"{text}\n{_table(['out, in', 'plain', 'foreseen', 'oneDNN', 'MKL'], rows)}"


def _cycles(cycles: list[dict[str, Any]] | None, stock: list[dict[str, Any]] | None) -> str:
    text = """## Compiled and dropped

`python -m bench.weights --cycles 1000`: a model is compiled, called, written to, called and dropped, the placements
in turn. What a process holds after so many cycles, and, with `--stock` in another process, what it holds where torch's
own eager backend compiles the same models: Dynamo keeps some memory of each compile by itself.
"""
    if not cycles:
        return f"{text}\nNot measured.\n"
    rows = [
        [name, one["cycle"], one["tensors"], one["groups"], one["copies"], f"{one['resident']:.0f}"]
        for name, looks in (("fxfuse", cycles), ("stock", stock or []))
        for one in looks
    ]
    table = _table(["backend", "cycles", "tensors", "groups", "copies", "resident MB"], rows)
    grown = [f"fxfuse {_grown(cycles)}", f"stock {_grown(stock) if stock else 'not measured'}"]
    return f"{text}\n{table}\nGrowth over the later half of the cycles, kB for each: {', '.join(grown)}.\n"


def _grown(looks: list[dict[str, Any]]) -> str:
    """Kilobytes for each cycle, when the history of reports is full."""
    first, last = looks[len(looks) // 2], looks[-1]
    return f"{(last['resident'] - first['resident']) * 1e3 / (last['cycle'] - first['cycle']):.0f}"


def _ratios(records: list[dict[str, Any]] | None) -> str:
    text = """## SmolLM2 on a CPU

`python -m bench.weights --smollm2`: whole forward, real weights, ratio to Inductor's default (above 1: faster),
arms interleaved in one process. Patterns `rms_norm_gated_mlp`, `rms_norm_qkv` and `linear`, named; "granted" is
`extra_memory=1.0`. Error: RMS of the logits against float64. MB: parameters and what is derived from them; resident:
of the process, after its calls, each arm in one of its own (`--resident`).

The figures were taken on a Sapphire Rapids, which has AMX; where AVX512_CORE_VNNI stands, oneDNN and fxfuse were
capped to the instructions of a CPU without bf16 ones. In bf16 such a CPU gets `cpu_panels_fp32`: fp32 arithmetic
straight from the bf16 weights, with no second copy and less error than eager, at every row count. In fp32
`extra_memory=1.0` gives `cpu_kept_panels` from 2 to 64 rows; elsewhere, and without memory, the kernels are
PyTorch's own, which the inner compiler has anyway: such arms differ by noise. `cpu_panels` (fp32, no copy) runs
when named, or where `fxfuse tune` found it faster.
"""
    if not records:
        return f"{text}\nNot measured.\n"
    rows = []
    for r in records:
        isa = f", {r['isa']}" if r["isa"] else ""
        resident = " / ".join(f"{arm['resident']:.0f}" if "resident" in arm else "-" for arm in r["arms"].values())
        where = f"{r['layers']} layers, {r['threads']} thread(s){isa}, load {r['load']:.1f}"
        arms = r["arms"].items()
        rows.append(
            [
                r["dtype"], r["rows"], where, *(f"{arm['ratio']:.2f}" for _, arm in arms),
                " / ".join(f"{arm['error']:.1e}" for _, arm in arms),
                " / ".join(f"{arm['bytes'] / 1e6:.0f}" for _, arm in arms), resident,
            ]
        )  # fmt: skip
    names = list(records[0]["arms"])
    return f"{text}\n{_table(['dtype', 'rows', 'run', *names, 'errors', 'MB', 'resident MB'], rows)}"
