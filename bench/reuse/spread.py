"""Over a spread of architectures: which regions are found, and whether results and gradients are those of eager."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

LAYERS = 6
_DEPTHS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers", "num_decoder_layers",
    "num_encoder_layers",
)  # fmt: skip


@dataclass(frozen=True)
class Covered:
    """One model, forward without gradients or forward and backward.

    Attributes:
        regions: per captured graph, how often each region is called; empty where it is left whole.
        whole: why a graph is left whole.
        error: the largest difference from eager, relative to eager's largest value; None where it did not run.
        seconds: processor time of the first call, the compile with ``inner="aot_eager"`` in it.
    """

    model: str
    mode: str
    regions: list[list[int]]
    whole: list[str]
    error: float | None
    seconds: float
    status: str = ""


def covered(names: Sequence[str]) -> list[dict[str, Any]]:
    """A row per model and mode."""
    from bench.coverage import architectures

    rows = []
    for name in names or architectures.SPREAD:
        for mode in ("forward", "backward"):
            rows.append(asdict(_examine(name, mode)))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _examine(name: str, mode: str) -> Covered:
    import fxfuse
    from bench.coverage import architectures, tiny

    architecture = next((a for a in architectures.everything() if name in (a.name, a.model_type)), None)
    if architecture is None:
        return Covered(name, mode, [], [], None, 0.0, "not in this transformers")
    torch._dynamo.reset()
    seen = fxfuse.reports()[-1] if fxfuse.reports() else None
    tiny.SIZES.update(dict.fromkeys(_DEPTHS, LAYERS))
    train = mode == "backward"
    try:
        model = tiny.model_of(architecture).requires_grad_(train)
        expected = _outcome(model, model, tiny.inputs_of(model, architecture, train=train), train)
        fast = torch.compile(model, backend=fxfuse.Backend(inner="aot_eager", on_error="raise", on_miss="silent"))
        start = time.process_time()
        found = _outcome(model, fast, tiny.inputs_of(model, architecture, train=train), train)
        seconds = time.process_time() - start
    except Exception as error:  # a row of the table, whatever fails
        return Covered(name, mode, [], [], None, 0.0, f"{type(error).__name__}: {str(error).splitlines()[0][:90]}")
    reports = list(fxfuse.reports())
    mine = reports[reports.index(seen) + 1 :] if seen in reports else reports
    records = [record for report in mine for record in report.reuse]
    error = max((_difference(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)
    regions = [[region.copies for region in record.repeated] for record in records if record.repeated]
    return Covered(name, mode, regions, [r.reason for r in records if not (r.repeated or r.as_asked)], error, seconds)


def _outcome(model: Any, run: Any, given: dict[str, Any], train: bool) -> list[torch.Tensor]:
    model.zero_grad()
    with torch.set_grad_enabled(train):
        result = run(**given)
    logits = result.logits if "logits" in result else result[0]
    if not train:
        return [logits]
    loss = result.loss if result.get("loss") is not None else logits.float().square().mean()
    loss.backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Not a number counts as infinite, unless both are it."""
    both = torch.isfinite(found) & torch.isfinite(expected)
    if not bool(torch.equal(torch.isfinite(found), torch.isfinite(expected))):
        return float("inf")
    if not bool(both.any()):
        return 0.0
    difference = (found - expected)[both].abs().max()
    return float(difference / expected[both].abs().max().clamp_min(1e-6))


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A Markdown table: a line per model."""
    out = [
        "| model | regions, forward | regions, training | difference from eager, forward | training | seconds |",
        "|" + "---|" * 6,
    ]
    for name in dict.fromkeys(row["model"] for row in rows):
        forward, backward = (next((r for r in rows if (r["model"], r["mode"]) == (name, m)), None) for m in MODES)
        both = [row for row in (forward, backward) if row]
        cells = [name, *map(_regions, (forward, backward)), *map(_error, (forward, backward))]
        out.append("| " + " | ".join([*cells, f"{sum(row['seconds'] for row in both):.1f}"]) + " |")
    return out


MODES = ("forward", "backward")


def _regions(row: dict[str, Any] | None) -> str:
    if row is None or row["error"] is None:
        return row["status"] if row else "not measured"
    found = ["+".join(f"x{count}" for count in sorted(graph, reverse=True)) for graph in row["regions"]]
    return "; ".join(found + [f"whole: {reason}" for reason in dict.fromkeys(row["whole"])]) or "none"


def _error(row: dict[str, Any] | None) -> str:
    return "-" if row is None or row["error"] is None else f"{row['error']:.0e}"
