"""How fast the arms are, measured in turns, and when compiling has paid.

An answer alone is no measurement: whatever else the machine does during one arm's answer would count against that arm.
So the arms take turns, round after round, and medians are compared.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fxfuse.demo.greedy import Answer, Step

ROUNDS = 7
ENOUGH_SECONDS = 30.0  # on a slow machine fewer rounds do, but never fewer than three
DECODE_STEPS = 8  # per round


@dataclass
class Speed:
    """Seconds per prefill and per decode step, of calls that compiled nothing."""

    prefills: list[float] = field(default_factory=list)
    decodes: list[float] = field(default_factory=list)

    def add(self, steps: list[Step]) -> None:
        """Count the steps of one turn, the first of which is prefill."""
        self.prefills += [step.seconds for step in steps[:1] if not step.compiled]
        self.decodes += [step.seconds for step in steps[1:] if not step.compiled]

    @property
    def prefill(self) -> float | None:
        return statistics.median(self.prefills) if self.prefills else None

    @property
    def decode(self) -> float | None:
        return statistics.median(self.decodes) if self.decodes else None

    def answer_seconds(self, tokens: int) -> float | None:
        """What an answer of so many tokens takes at this speed."""
        if self.prefill is None or (tokens > 1 and self.decode is None):
            return None
        return self.prefill + (tokens - 1) * (self.decode or 0.0)


class Turns(Protocol):
    """What takes turns: something that answers, and the speed it is found to have."""

    speed: Speed

    def answer(self) -> Iterator[tuple[Answer, int]]: ...


def take_turns(arms: Sequence[Turns], *, rounds: int = ROUNDS, enough: float = ENOUGH_SECONDS) -> int:
    """Let every arm begin an answer, round after round, each round with another one first; returns the rounds.

    After ``enough`` seconds, and three rounds, no further one begins.
    """
    start = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - start > enough:
            return done
        first = done % len(arms)
        for arm in [*arms[first:], *arms[:first]]:
            for answer, _ in arm.answer():
                if len(answer.steps) > DECODE_STEPS:
                    break
            arm.speed.add(answer.steps)
    return rounds


def break_even(compile_seconds: float, compiled: Speed, eager: Speed) -> int | None:
    """New tokens after which compiling has paid; None where it never does at these speeds."""
    if compiled.prefill is None or compiled.decode is None or eager.prefill is None or eager.decode is None:
        return None
    owed = compile_seconds + compiled.prefill - eager.prefill
    gain = eager.decode - compiled.decode
    if owed <= 0:
        return 1 if gain >= 0 else None
    if gain <= 0:
        return None
    return 1 + math.ceil(owed / gain)
