"""Whether every mutant of an example is refused: one that is another function, or that breaks a gate."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from fxfuse.authoring.captures import is_param
from fxfuse.checking.examples import Captured, Example
from fxfuse.checking.failures import Failure
from fxfuse.checking.judging import Look, differ, look, rewrite, same_function
from fxfuse.checking.mutate import Edit, Gate, edits
from fxfuse.checking.repro import repro
from fxfuse.checking.running import same_bits
from fxfuse.checking.sketch import Sketch, evaluate, quiet
from fxfuse.match import Match


@dataclass
class Refusals:
    """How many mutants were tried and refused, by kind of edit and by code of the refusal, and those that were not."""

    refused: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    @property
    def tried(self) -> int:
        return sum(self.refused.values()) + len(self.failures)


def refusals(example: Example, captured: Captured, seed: int, *, most: int | None = None) -> Refusals:
    """Try the mutants of one example (at most so many, picked at random) on a graph of it."""
    done = Refusals()
    chosen = random.Random(seed)
    sets = [captured.arguments(example.tensors(seed + i, outliers=i == 2)) for i in range(3)]
    originals = [evaluate(captured.gm, arguments) for arguments in sets]
    wanted = {e for n in example.way.tensors if is_param(example.pattern.captures[n]) for e in example.way.elements(n)}
    holders = captured.gm.graph.find_nodes(op="placeholder")
    pairs = zip(holders, captured.names, strict=True)
    parameters = frozenset(str(node.target) for node, name in pairs if name in wanted)
    proposed = list(edits(captured.gm.graph, parameters, chosen))
    if most is not None and len(proposed) > most:
        proposed = chosen.sample(proposed, most)
    for edit in proposed:
        sketch = Sketch(captured.gm)
        try:
            with quiet():
                place = edit.apply(sketch, sketch.mapping[edit.node])
                result, _ = evaluate(mutant := sketch.module(), sets[0])
                sketch.refresh()
        except Exception:  # the edited program cannot run, so it is no program
            continue
        changed = not same_bits(result, originals[0][0])
        _judge(done, example, captured, edit, place, mutant, sets, originals, changed, seed)
    _other_leaves(done, example, seed)
    return done


def _judge(
    done: Refusals,
    example: Example,
    captured: Captured,
    edit: Edit,
    place: fx.Node | None,
    mutant: fx.GraphModule,
    sets: Sequence[Sequence[Any]],
    originals: Sequence[Any],
    changed: bool,
    seed: int,
) -> None:
    seen = look(mutant, captured.live, example.pattern)
    if not seen.matches:
        if not changed:
            others = zip(sets[1:], originals[1:], strict=True)
            changed = any(differ(evaluate(mutant, a)[0], before[0]) is not None for a, before in others)
        if changed or edit.gate is not Gate.NONE:
            done.refused[edit.kind] += 1
            done.codes[seen.code] += 1
        return
    wrong = _wrong(example, captured, edit, place, mutant, sets, seen)
    if wrong is not None:
        what = f"found in a mutant ({edit.kind}: {edit.what}): {wrong}"
        done.failures.append(Failure("mutant", str(example), what, seed, repro(example.pattern, mutant, captured)))


def _wrong(
    example: Example,
    captured: Captured,
    edit: Edit,
    place: fx.Node | None,
    mutant: fx.GraphModule,
    sets: Sequence[Sequence[Any]],
    seen: Look,
) -> str | None:
    """Why this match of a mutant may not be; None where it is another, rightful site."""
    if edit.gate is Gate.NO_PARAMETER:
        edited = {edit.node.name, place.name if place is not None else ""}
        if any(value.node.name in edited for match in seen.matches for value in match.captured_values()):
            return f"{edit.node.name} is captured, which is no parameter that stays as it is"
    if edit.gate is Gate.READ and place is not None:
        for match in seen.matches:
            results = {node for output in match.outputs for node in (output.node, *output.twins)}
            if any(node.name == place.name for node in match.owned - results):
                return f"{place.name} is read outside, and the rewrite takes it away"
    try:
        fused = rewrite(mutant, captured.live, example.pattern)
    except Exception:  # what cannot be rewritten stays as it is
        return None
    difference = same_function(fused.gm, mutant, sets)
    return None if difference is None else f"after the rewrite {difference}"


def _other_leaves(done: Refusals, example: Example, seed: int) -> None:
    """Parameters that are runtime inputs, or of sizes that the pattern does not allow."""
    captures = example.pattern.captures
    tries: list[tuple[str, Example]] = []
    for name in example.way.tensors:
        capture: Any = captures[name]
        if is_param(capture):
            tries.append((f"{name} is a runtime input", replace(example, as_inputs=frozenset({name}))))
            shape = example.sizing.shape(name, capture)
            tries.append((f"{name} has one dimension more", replace(example, shapes={name: (1, *shape)})))
            for i, size in enumerate(capture.dims):
                if not _is_free(example, name, size):
                    narrow = (*shape[:i], 1, *shape[i + 1 :])
                    tries.append((f"{name} has size 1 for {size}", replace(example, shapes={name: narrow})))
    for what, other in tries:
        try:
            with quiet():
                captured = other.draw()
            evaluate(captured.gm, captured.live)
        except Exception:  # the reference does not run so
            continue
        seen = look(captured.gm, captured.live, example.pattern)
        name = what.partition(" ")[0]
        captures_it = any(_is_captured(match, captured, name) for match in seen.matches)
        if seen.matches and (captures_it or _differs(captured, example)):
            script = repro(example.pattern, captured.gm, captured)
            done.failures.append(Failure("mutant", str(example), f"found where {what}", seed, script))
        elif not seen.matches:
            done.refused["parameter"] += 1
            done.codes[seen.code] += 1


def _is_captured(match: Match, captured: Captured, name: str) -> bool:
    """Whether a match takes this tensor of the example, or one of its siblings."""
    holders = zip(captured.gm.graph.find_nodes(op="placeholder"), captured.names, strict=True)
    places = {node.name for node, of in holders if of == name or str(of).rpartition("_")[0] == name}
    return any(value.node.name in places for value in match.captured_values())


def _differs(captured: Captured, example: Example) -> bool:
    """Whether the rewrite of what was found, a smaller site that has no part in it, computes something else."""
    try:
        fused = rewrite(captured.gm, captured.live, example.pattern)
    except Exception:  # what cannot be rewritten stays as it is
        return False
    return same_function(fused.gm, captured.gm, [captured.live]) is not None


def _is_free(example: Example, name: str, size: Any) -> bool:
    """Whether a size stands in no other capture of the example, so that any value of it is right."""
    captures: dict[str, Any] = dict(example.pattern.captures)
    others = [s for n in example.way.tensors for s in captures[n].dims if n != name]
    return not isinstance(size, int) and all(str(size) not in str(other) for other in others)
