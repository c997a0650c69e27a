"""How one program is run: how it is captured, and with which options it is rewritten."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.soundness.program import Program
from bench.soundness.targets import Aim
from fxfuse.authoring import Pattern
from fxfuse.kernels import REFERENCE, kernels_for
from fxfuse.options import Options, parse

REAL, FAKE, DYNAMO, ATEN, INDUCTOR = "stand-ins", "fake", "dynamo", "aten", "aten, decomposed"
"""Captures: one run on real tensors as stand-ins for fakes, one on fakes, Dynamo itself; and functional ATen graphs."""

SAME_OPERATIONS = frozenset({REFERENCE, "plain", "paired", "padded", "careless"})
"""Kernels that repeat the reference's operations in its order, so their results are eager's to the bit."""

_RESTING = ("paired", "padded")
"""Kernels of `patterns.py` that are right only where a safeguard holds."""

_CPU = ("plain", "stacked", "stacked_biased", "cpu_fp32_gemm")


@dataclass(frozen=True)
class Setting:
    """``patterns`` by name; ``kernels``: pattern name -> kernels by name; ``weights``: where derived ones go."""

    capture: str = FAKE
    patterns: tuple[str, ...] = ()
    kernels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    weights: str = "inline"

    @property
    def exact(self) -> bool:
        """Whether every kernel that may be placed repeats the reference's operations."""
        return all(set(names) <= SAME_OPERATIONS for _, names in self.kernels)

    def describe(self) -> dict[str, Any]:
        """The options that a user would give, beside ``patterns``."""
        kernels = {name: list(names) for name, names in self.kernels}
        return {"kernels": kernels, "weights": self.weights, "on_error": "raise", "on_miss": "silent"}


def choose(
    rng: random.Random,
    program: Program,
    patterns: Sequence[Pattern],
    *,
    dynamo: float,
    aten: float = 0.0,
    aim: Aim | None = None,
) -> Setting:
    """A setting by chance. Mostly the kernels whose results must be eager's to the bit."""
    if aim is not None and aim.captures:
        dynamo, aten = 0.0, 1.0 if aim.captures == "aten" else 0.5
    rest = max(1.0 - dynamo - aten, 0.0)
    shares = (rest * 0.85, rest * 0.15, dynamo, aten / 2, aten / 2)
    capture = rng.choices((REAL, FAKE, DYNAMO, ATEN, INDUCTOR), shares)[0]
    exact = rng.random() < 0.8
    kernels = []
    active = [p for p in patterns if p.name in program.focus] if rng.random() < 0.5 else patterns
    for pattern in active:
        known = [k for k in kernels_for(pattern.name) if k in _CPU]
        names = [k for k in known if k in SAME_OPERATIONS] if exact else rng.sample(known, len(known))
        declared = kernels_for(pattern.name)
        names += [k for k in declared if k in _RESTING and rng.random() < 0.8]
        if "careless" in declared and rng.random() < (0.9 if aim is not None and aim.careless else 0.03):
            names = ["careless"]
        names += [REFERENCE]
        if rng.random() < 0.3 and not (aim is not None and aim.careless):
            names = [REFERENCE]
        if kernels_for(pattern.name):
            kernels.append((pattern.name, tuple(names)))
    return Setting(capture, tuple(p.name for p in active), tuple(kernels))


@functools.lru_cache(maxsize=256)
def parsed(setting: Setting, patterns: tuple[Pattern, ...]) -> Options:
    """The setting as options, checked."""
    return parse({"patterns": [p for p in patterns if p.name in setting.patterns], **setting.describe()})
