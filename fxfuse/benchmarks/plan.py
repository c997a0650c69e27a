"""What a run measures, checked for names that are not there before anything is begun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fxfuse.benchmarks import op
from fxfuse.benchmarks.arms import ARMS, INDUCTOR, MODEL, chosen
from fxfuse.benchmarks.errors import BenchError
from fxfuse.benchmarks.models import MODELS
from fxfuse.benchmarks.shapes import DTYPES, WIDTHS
from fxfuse.errors import unknown

OPS, MODELS_OF = ("op", "tune"), ("model", "compile", "memory")
"""Suites of sites, and of models."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        arms: by name; None: all.
        resume: leave out what the file has.
        seconds: for the turns of one cell (op), or of one arm (model).
        cache: bytes of the last-level cache; None: as the machine tells.
        inner: what compiles every arm.
    """

    device: torch.device
    patterns: Sequence[str] = ("rms_norm_gated_mlp",)
    widths: Sequence[str] = ()
    rows: Sequence[int] = ()
    dtypes: Sequence[str] = ()
    models: Sequence[str] = ()
    arms: Sequence[str] | None = None
    layers: int | None = None
    vocabulary: int | None = None
    prompt: int = 64
    seconds: float = 3.0
    cache: int | None = None
    inner: str = INDUCTOR
    resume: bool = False


def check(suite: str, plan: Plan) -> None:
    """Raise for a name that is not there, before anything is measured.

    Raises:
        BenchError: an arm, width, dtype or model.
        OptionError: a pattern.
    """
    for given, flag, kind, valid in (
        (plan.widths, "--widths", "width", WIDTHS),
        (plan.dtypes, "--dtypes", "dtype", DTYPES),
        (plan.models, "--models", "model", MODELS),
    ):
        for name in given:
            if name not in valid:
                raise BenchError(f"{flag}: " + unknown(kind, name, valid))
    for pattern in plan.patterns if suite in OPS else ():
        chosen(op.arms_of(pattern), plan.arms)
    if suite in MODELS_OF:
        chosen(ARMS[MODEL], plan.arms)
