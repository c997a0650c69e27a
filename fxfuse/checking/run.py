"""`check_pattern`: every check on one pattern, and what came out as one record."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fxfuse.authoring import Pattern
from fxfuse.authoring.captures import is_input
from fxfuse.checking.covering import covering
from fxfuse.checking.examples import Example, allowed_dtypes, example
from fxfuse.checking.failures import CheckError, Failure, NotHere
from fxfuse.checking.judging import look
from fxfuse.checking.positives import Positives
from fxfuse.checking.refusals import Refusals, refusals
from fxfuse.checking.rewrites import SEEDS, Kernels, Rewrites
from fxfuse.checking.sizing import ODD, SQUARE, size_for
from fxfuse.checking.sketch import evaluate, quiet
from fxfuse.checking.ways import Way, ways

LEADS = ((), (1,), (5,), (1, 1), (2, 1, 3))


@dataclass(frozen=True)
class Effort:
    """How much is tried. Every way is searched for once, whatever the effort.

    Attributes:
        strength: features of ways whose combinations are covered by the ways that get all checks.
        spellings: random respellings of each graph.
        mutants: tried at most for each way that gets all checks; None: all of them.
        seeds: random inputs of each numeric comparison.
        dtypes: how many of the dtypes each way that gets all checks is captured in.
    """

    strength: int = 2
    spellings: int = 5
    mutants: int | None = 90
    seeds: int = SEEDS
    dtypes: int = 3


FULL = Effort()
QUICK = Effort(strength=1, spellings=3, mutants=60, seeds=2, dtypes=1)


@dataclass
class Result:
    """What the checks of one pattern came to."""

    pattern: str
    line: str
    seed: int
    ways: int = 0
    positives: Positives = field(default_factory=Positives)
    mutants: Refusals = field(default_factory=Refusals)
    rewrites: Rewrites = field(default_factory=Rewrites)
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.failures

    def record(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        numerics = {name: max(e.ratio for e in found) for name, found in self.rewrites.numerics.items()}
        gradients = {name: max(e.ratio for e in found) for name, found in self.rewrites.gradients.items()}
        return {
            "pattern": self.pattern,
            "line": self.line,
            "seed": self.seed,
            "passed": self.passed,
            "variants": self.ways,
            "excluded": {way: message for way, (_, message) in self.positives.excluded.items()},
            "coincide": {way: found for way, (_, found) in self.positives.coincided.items()},
            "positives": [self.positives.right, self.positives.tried],
            "respellings": [self.positives.respelled_right, self.positives.respelled],
            "mutants": [sum(self.mutants.refused.values()), self.mutants.tried],
            "refused_by_code": dict(self.mutants.codes),
            "refused_by_edit": dict(self.mutants.refused),
            "kernels": self.rewrites.ran,
            "skipped_kernels": {n: why for n, why in self.rewrites.skipped.items() if n not in self.rewrites.numerics},
            "numerics": numerics,
            "gradients": gradients,
            "failures": [dataclasses.asdict(failure) for failure in self.failures],
            "notes": self.notes,
            "seconds": round(self.seconds, 2),
        }


def check_pattern(pattern: Pattern, *, name: str | None = None, seed: int = 0, quick: bool = False) -> Result:
    """Check a pattern and its kernels: what is wrong with them is in the result's ``failures``.

    Args:
        name: what to call the pattern, ``pack::name``.
        quick: cover every label and operand once instead of every pair of them, in one dtype each.
    """
    start = time.perf_counter()
    result = Result(name or pattern.name, str(pattern.line), seed)
    try:
        _Run(pattern, QUICK if quick else FULL, seed, result).run()
    except CheckError as error:
        result.failures.append(Failure("example", pattern.name, str(error), seed))
    except Exception as error:  # of fxfuse, or of a constraint: it may not cost the other patterns their check
        what = f"{type(error).__name__}: {error}"
        result.failures.append(Failure("crash", pattern.name, what, seed, traceback.format_exc()))
    for part in (result.positives, result.mutants, result.rewrites):
        result.failures += part.failures
    result.notes += dict.fromkeys(result.rewrites.notes)
    result.seconds = time.perf_counter() - start
    return result


def _runs(one: Example) -> bool:
    """Whether the reference runs at these sizes; it does not where a size counts the rows of an input."""
    try:
        one.way.run(one.tensors(), one.sizing.scalars)
    except Exception:  # any complaint of torch
        return False
    return True


class _Run:
    def __init__(self, pattern: Pattern, effort: Effort, seed: int, result: Result) -> None:
        self.pattern = pattern
        self.effort = effort
        self.seed = seed
        self.result = result
        self.every = ways(pattern)
        self.kernels = Kernels(self.every, seed)
        result.rewrites = self.kernels.done
        result.ways = len(self.every)

    def run(self) -> None:
        for way in self.every:
            try:
                self._found(way)
            except NotHere as why:  # such as a CPU's histogram of ints
                self.result.notes.append(str(why))
        positives = self.result.positives
        self.result.failures += positives.unreachable()
        if len(self.result.notes) == len(self.every):
            raise CheckError(self.result.notes[0])
        allowed = [w for w in self.every if str(w) in positives.own or str(w) in positives.coincided]
        chosen = covering(allowed, self.effort.strength) if allowed else []
        for turn, way in enumerate(chosen):
            self._whole(way, turn)
        for turn, way in enumerate(covering(allowed, self.effort.strength + 1) if allowed else []):
            dtypes = self._low_first(way)
            one = example(way, dtypes[turn % len(dtypes)], seed=self.seed)
            self.kernels.check(one, one.draw(), seeds=1)
        for turn, way in enumerate(covering(allowed, 1) if allowed else []):
            self._shapes(way, turn)

    def _found(self, way: Way) -> None:
        """Whether a way is found in its own graph."""
        for dtype in self._low_first(way)[: max(1, self.effort.dtypes - 1)]:
            one = example(way, dtype, seed=self.seed)
            self.result.positives.try_one(one, one.draw(), self.seed)

    def _low_first(self, way: Way) -> list[torch.dtype]:
        """Lower precisions first: there every cast counts."""
        return sorted(allowed_dtypes(way), key=lambda d: d is torch.float32)

    def _whole(self, way: Way, turn: int) -> None:
        """Every check of one way; where not all dtypes are asked for, ways take turns."""
        dtypes = self._low_first(way)
        dtypes = [dtypes[(turn + i) % len(dtypes)] for i in range(min(self.effort.dtypes, len(dtypes)))]
        for place, dtype in enumerate(dtypes):
            static = example(way, dtype, seed=self.seed)
            captured = static.capture()
            if self.result.positives.try_one(static, captured, self.seed):
                spellings = range(self.seed, self.seed + self.effort.spellings)
                self.result.positives.try_spellings(static, captured, [1000 * turn + s for s in spellings])
                self.kernels.check(static, captured, seeds=self.effort.seeds, gradients=place == turn % len(dtypes))
        self._symbolic(example(way, dtypes[turn % len(dtypes)], seed=self.seed))
        square = example(way, dtypes[turn % len(dtypes)], sizing=size_for(way, prefer=SQUARE), seed=self.seed)
        self._mutants(square, turn)

    def _symbolic(self, static: Example) -> None:
        """Symbolic sizes: found, of the right form, and right at sizes other than those it was captured at."""
        one = replace(static, symbolic=True)
        captured = one.capture()
        if not self.result.positives.try_one(one, captured, self.seed):
            return
        self.result.positives.try_spellings(one, captured, [self.seed])
        self.kernels.check(one, captured, seeds=0)
        other = replace(one, sizing=replace(one.sizing, lead=tuple(size + 2 for size in one.sizing.lead)))
        if captured.resized(other.tensors()) is not None and _runs(other):
            self.kernels.check_resized(other, captured)

    def _mutants(self, one: Example, turn: int) -> None:
        captured = one.draw()
        if not look(captured.gm, captured.live, self.pattern).matches:
            return
        found = refusals(one, captured, self.seed + turn, most=self.effort.mutants)
        self.result.mutants.refused += found.refused
        self.result.mutants.codes += found.codes
        self.result.mutants.failures += found.failures

    def _shapes(self, way: Way, turn: int) -> None:
        """Kernels in every dtype, at other ranks and sizes, on mixed dtypes, other strides and broadcast operands."""
        dtypes = self._low_first(way)
        every = (example(way, dtype, seed=self.seed) for dtype in dtypes)
        for one in (*every, *self._odd(way, dtypes[turn % len(dtypes)])):
            try:
                with quiet():
                    captured = one.draw()
                evaluate(captured.gm, captured.live)
            except Exception:  # the reference does not run so
                continue
            if look(captured.gm, captured.live, self.pattern).matches:
                self.kernels.check(one, captured, seeds=1)

    def _odd(self, way: Way, dtype: torch.dtype) -> Iterator[Example]:
        plain = example(way, dtype, seed=self.seed)
        captures: dict[str, Any] = dict(self.pattern.captures)
        for lead in LEADS:
            yield replace(plain, sizing=replace(plain.sizing, lead=lead))
        with contextlib.suppress(CheckError):  # an operation may ask for even sizes
            yield example(way, dtype, sizing=size_for(way, prefer=ODD), seed=self.seed)
        yield replace(plain, strided=True)
        if dtype is not torch.float32:
            for name in way.tensors:
                yield replace(plain, dtypes={name: torch.float32})
        inputs = [n for n in way.tensors if is_input(captures[n]) and ... in captures[n].dims]
        for name in inputs if len(inputs) > 1 else ():
            shape = plain.sizing.shape(name, captures[name])
            yield replace(plain, shapes={name: (1, *shape[1:])})
            yield replace(plain, shapes={name: shape[1:]})
