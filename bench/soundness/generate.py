"""The generator: a random program for each (seed, index), always the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from bench.soundness.builder import Builder
from bench.soundness.glue import glue
from bench.soundness.mistakes import MUTATIONS
from bench.soundness.pieces import piece
from bench.soundness.program import Program
from bench.soundness.quiet import quiet
from bench.soundness.targets import TARGETS
from fxfuse.authoring import Pattern


def generate(seed: int, index: int, patterns: Sequence[Pattern], target: str = "") -> Program:
    """The program with this index of this seed; ``target``: a safeguard that it is to need."""
    with quiet():
        return _generate(random.Random(f"{seed}/{index}"), patterns, target)


def _generate(rng: random.Random, patterns: Sequence[Pattern], target: str) -> Program:
    torch.manual_seed(rng.randrange(1 << 30))
    b = Builder(rng, grad=rng.random() < 0.15)
    aim = TARGETS.get(target) if target else None
    if not target and rng.random() < 0.25:
        aim = TARGETS[rng.choice(sorted(TARGETS))]
    if rng.random() < (0.3 if not target else 0.05):
        lead = rng.choice(((2, 3), (4,), (1, 2), (2, 2, 2)))
        b.operand((*lead, rng.choice((2, 4, 8))))
        glue(b, rng.randint(0, 2))
    for _ in range(rng.choices((1, 2, 3), (6, 3, 0.5))[0]):
        if rng.random() < 0.08:
            b.region = (rng.choice(("no_grad", "enable_grad", "autocast", "checkpoint0")),)
        edits = rng.choices((0, 1, 2, 3), (4, 5, 2, 1) if aim is None else (20, 2, 1, 0))[0]
        fitting = [p for p in patterns if aim is None or not aim.patterns or p.name in aim.patterns]
        piece(b, rng.choice(fitting or list(patterns)), edits, clean=rng.random() < 0.5, aim=aim)
        if rng.random() < 0.8:
            b.region = ()
        glue(b, rng.choice((0, 0, 1, 2, 3) if not target else (0, 0, 0, 1)))
        b.region = ()
    if rng.random() < 0.1 and b.env:
        b.run(rng.choice(MUTATIONS).format(rng.choice(list(b.env))))
    program = b.program()
    if rng.random() < 0.03:
        program = _dynamic(program, rng)
    return program


def _dynamic(program: Program, rng: random.Random) -> Program:
    """The program with its inputs' first sizes as symbols of the graph."""
    firsts = {o.shape[0] for o in program.operands if o.kind == "x" and len(o.shape) > 1 and not o.of}
    symbols = {size for size in firsts if size > 1}
    return replace(
        program,
        operands=tuple(
            replace(o, dynamic=(0,)) if o.kind == "x" and len(o.shape) > 1 and o.shape[0] in symbols and not o.of else o
            for o in program.operands
        ),
    )
