"""Delta debugging: the smallest program that still fails in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from bench.soundness.program import Operand, Program, Step, operands, scope, without_dead

Fails = Callable[[Program], bool]


def shrink(program: Program, fails: Fails, *, seconds: float = 60.0) -> Program:
    """The program with all removed that is not needed for ``fails`` to hold; what it was, where nothing can go."""
    end = time.monotonic() + seconds
    best = program
    while time.monotonic() < end:
        smaller = next((p for p in _smaller(best) if time.monotonic() < end and _still(p, fails)), None)
        if smaller is None:
            break
        best = smaller
    return best


def _still(program: Program, fails: Fails) -> bool:
    try:
        return fails(program)
    except Exception:
        return False


def _smaller(program: Program) -> Iterator[Program]:
    """Candidates, the boldest first; each is smaller than the program in one of its parts."""
    yield from _different(program, without_dead(program))
    if len(program.outputs) > 1:
        for name in program.outputs:
            yield without_dead(replace(program, outputs=(name,)))
        for name in program.outputs:
            yield without_dead(replace(program, outputs=tuple(n for n in program.outputs if n != name)))
    yield from _without_steps(program)
    for name in dict.fromkeys(r for s in program.steps for r in s.region):
        steps = tuple(replace(s, region=tuple(r for r in s.region if r != name)) for s in program.steps)
        yield replace(program, steps=steps)
    yield from _plainer_operands(program)
    if program.grad:
        given = tuple(replace(o, grad=False) for o in program.operands)
        yield replace(program, grad=False, operands=given)


def _different(program: Program, other: Program) -> Iterator[Program]:
    if (other.steps, other.operands) != (program.steps, program.operands):
        yield other


def _without_steps(program: Program) -> Iterator[Program]:
    shapes = _shapes(program)
    size = len(program.steps)
    while size:
        for start in range(0, len(program.steps), size):
            gone = program.steps[start : start + size]
            for names in _stand_ins(gone, shapes) if size == 1 else [_first_stand_ins(gone, shapes)]:
                kept = [*program.steps[:start], *(s.renamed(names) for s in program.steps[start + size :])]
                outputs = tuple(dict.fromkeys(names.get(n, n) for n in program.outputs))
                made = {n for s in kept for n in s.made} | {o.name for o in program.operands}
                outputs = tuple(n for n in outputs if n in made)
                if outputs:
                    yield without_dead(replace(program, steps=tuple(kept), outputs=outputs))
        size //= 2


def _stand_ins(gone: tuple[Step, ...], shapes: dict[str, torch.Size]) -> list[dict[str, str]]:
    """What readers of a removed statement's result may read instead: one of its operands of that shape."""
    (step,) = gone
    if not step.made:
        return [{}]
    made = step.made[0]
    fitting = [n for n in step.read if n in shapes and shapes.get(n) == shapes.get(made)]
    return [{made: n} for n in fitting] or [{}]


def _first_stand_ins(gone: tuple[Step, ...], shapes: dict[str, torch.Size]) -> dict[str, str]:
    names: dict[str, str] = {}
    for step in gone:
        for made in step.made:
            fitting = [n for n in step.read if n in shapes and shapes.get(n) == shapes.get(made)]
            if fitting:
                names[made] = names.get(fitting[0], fitting[0])
    return names


def _shapes(program: Program) -> dict[str, torch.Size]:
    """The shape of every name, by running the statements outside their regions."""
    names = {**scope(), **operands(program, 0)}
    with torch.no_grad():
        for step in program.steps:
            try:
                exec(step.text, names)
            except Exception:
                continue
    return {n: v.shape for n, v in names.items() if isinstance(v, torch.Tensor)}


def _plainer_operands(program: Program) -> Iterator[Program]:
    def each(change: Callable[[Operand], Operand]) -> Iterator[Program]:
        for operand in program.operands:
            changed = change(operand)
            if changed != operand:
                yield replace(program, operands=tuple(changed if o is operand else o for o in program.operands))

    def every(change: Callable[[Operand], Operand]) -> Iterator[Program]:
        changed = tuple(map(change, program.operands))
        if changed != program.operands:
            yield replace(program, operands=changed)

    for change in (
        lambda o: replace(o, dynamic=()),
        lambda o: replace(o, of=""),
        lambda o: replace(o, dtype=torch.float32) if o.dtype.is_floating_point else o,
        lambda o: replace(o, grad=False),
    ):
        yield from every(change)
        yield from each(change)
    for size in sorted({s for o in program.operands for s in o.shape if s > 2}, reverse=True):
        for small in (2, size // 2):
            yield from every(_resized(size, small))
    yield from every(_with_a_dimension_less)


def _resized(size: int, small: int) -> Callable[[Operand], Operand]:
    return lambda o: replace(o, shape=tuple(small if s == size else s for s in o.shape))


def _with_a_dimension_less(operand: Operand) -> Operand:
    spare = len(operand.shape) > 2 and operand.kind == "x" and not operand.dynamic
    return replace(operand, shape=operand.shape[1:]) if spare else operand
