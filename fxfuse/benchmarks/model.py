"""`fxfuse bench model`: prefill and decode over a static cache, all arms of a model in turns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fxfuse.benchmarks.arms import EAGER, INDUCTOR, Arm, absent, compiled
from fxfuse.benchmarks.by_hand import liger_model, stack_model
from fxfuse.benchmarks.models import build, prompt
from fxfuse.demo.greedy import GreedyDecoder
from fxfuse.demo.show import Arm as Run
from fxfuse.demo.speed import take_turns
from fxfuse.errors import first_line
from fxfuse.report import Report
from fxfuse.tuning.timing import summary

Progress = Callable[[str], None]

NEW_TOKENS = 24
ROUNDS = 200
"""As many turns at most; usually the time ends them."""


@torch.no_grad()
def measure(
    what: Mapping[str, Any],
    arms: Sequence[Arm],
    device: torch.device,
    *,
    prompt_tokens: int,
    seconds: float,
    layers: int | None,
    vocabulary: int | None,
    progress: Progress,
    inner: str = INDUCTOR,
) -> dict[str, Any]:
    """The figures of one model: of each arm its speeds, or why it has none. Compiles every arm's prefill, then decode.

    In this order because Dynamo remembers the shapes of a function, not of an arm.
    """
    skipped = {arm.name: why for arm in arms if (why := absent(arm, device.type, inner)) is not None}
    running = [arm for arm in arms if arm.name not in skipped]
    model = build(what["model"], what["dtype"], device.type, layers, vocabulary)
    weights = sum(p.nbytes for p in model.parameters())
    ids = prompt(model, prompt_tokens)
    runs: dict[str, Run] = {}
    for arm in running:
        progress(f"{arm.name}, prefill")
        try:
            own = changed(model, arm)
            decoder = GreedyDecoder(own, ids, NEW_TOKENS, frozenset())
            runs[arm.name] = Run(arm.name, compiled(arm, own, inner=inner), decoder)
            runs[arm.name].rehearse()
        except Exception as error:  # whatever an arm's compiler or launch raises; the others are measured
            skipped[arm.name] = first_line(error)
            runs.pop(arm.name, None)
    for name in list(runs):
        progress(f"{name}, decode")
        try:
            while runs[name].rehearse() is not None:
                pass
        except Exception as error:
            skipped[name] = first_line(error)
            del runs[name]
    progress("timing")
    take_turns(list(runs.values()), rounds=ROUNDS, enough=seconds * len(runs))
    tokens = {name: _tokens(run) for name, run in runs.items()}
    figures: dict[str, Any] = {}
    for name, run in runs.items():
        if not run.speed.prefills or not run.speed.decodes:
            skipped[name] = "compiled in every call"
            continue
        prefill, decode = summary(run.speed.prefills), summary(run.speed.decodes)
        figures[name] = {
            "prefill_ms": prefill.ms, "prefill_p20": prefill.p20, "prefill_p80": prefill.p80,
            "decode_ms": decode.ms, "decode_p20": decode.p20, "decode_p80": decode.p80,
            "prefill_tokens_s": round(prompt_tokens / prefill.ms * 1e3, 3),
            "decode_tokens_s": round(1e3 / decode.ms, 3),
        }  # fmt: skip
        if EAGER in tokens:
            figures[name]["tokens_as_eager"] = tokens[name] == tokens[EAGER]
        if run.reports:
            figures[name]["ran"] = ran(run.reports)
    return {
        "vocabulary": model.config.vocab_size, "weight_bytes": weights, "arms": figures, "skipped": skipped,
    }  # fmt: skip


def changed(model: Any, arm: Arm) -> Any:
    """The model itself, or a copy whose modules are those of the arm."""
    if arm.module == "reference":
        return model
    made = copy.deepcopy(model)
    (stack_model if arm.module == "by hand" else liger_model)(made)
    return made


def ran(reports: Sequence[Report]) -> str:
    """What fxfuse's reports say that it did: kernels and placements, graph by graph."""
    graphs = []
    for report in reports:
        kinds = [(s.kernel, s.weights) for s in report.sites if s.outcome == "rewritten"]
        words = [f"{kinds.count(kind)} x {kind[0]} ({kind[1]})" for kind in dict.fromkeys(kinds)]
        graphs.append(", ".join(words) or "nothing")
    return "; ".join(graphs)


def _tokens(run: Run) -> list[int]:
    return [token for _, token in run.answer()]
