"""Runs cells one by one: those that are done are left out, time is kept to, and one that fails stops no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from fxfuse.benchmarks.budget import Budget
from fxfuse.errors import FxfuseError

Said = Callable[[str], None]


@dataclass
class Outcome:
    """What became of the cells of a run. ``failed``: key and why."""

    done: int = 0
    kept: int = 0
    left: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.done, self.kept, self.left = self.done + other.done, self.kept + other.kept, self.left + other.left
        self.failed += other.failed


@dataclass(frozen=True)
class Task:
    """One cell to measure: ``run`` writes what it finds to where ``done`` looks."""

    key: str
    done: Callable[[], bool]
    run: Callable[[Said], None]


def run_all(tasks: Sequence[Task], *, resume: bool, budget: Budget, on: Callable[[int, str], None]) -> Outcome:
    """Run tasks in order, less those that are done where ``resume`` is asked for.

    Args:
        on: is told how many are behind and what is being measured.
    """
    outcome = Outcome()
    for number, task in enumerate(tasks):
        if resume and task.done():
            outcome.kept += 1
            continue
        if not budget.allows:
            outcome.left += 1
            continue
        on(number, task.key)
        try:
            with budget.spending():
                task.run(lambda word, n=number, k=task.key: on(n, f"{k}, {word}"))  # type: ignore[misc]  # defaults bind
        except FxfuseError as error:
            outcome.failed.append((task.key, str(error)))
        else:
            outcome.done += 1
    return outcome


def words(outcome: Outcome) -> Iterable[str]:
    """What became of a run, as lines."""
    parts = [f"{outcome.done} measured"]
    parts += [f"{outcome.kept} were there already"] if outcome.kept else []
    parts += [f"{outcome.left} left out: the time was up; --resume measures them"] if outcome.left else []
    yield ", ".join(parts)
    for name, why in outcome.failed:
        yield f"{name} was not measured: {why}"
