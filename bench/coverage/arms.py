"""One capture of a model, compiled many ways: each pattern alone, all together, and as fxfuse does by default.

Dynamo traces once. The compiled model then runs whichever arm is chosen, so that all arms see the same graphs.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import fx

import fxfuse

ORIGINAL, ALL, DEFAULT = "original", "all", "default"


def arms_of(patterns: Sequence[str], together: Sequence[str] = (ALL, DEFAULT)) -> dict[str, dict[str, Any]]:
    """Each arm's options: every pattern alone, and of ``ALL`` and ``DEFAULT`` those that are wanted."""
    common: dict[str, Any] = {"inner": "eager", "on_error": "fallback", "on_miss": "silent"}
    alone = {name: {**common, "patterns": [name]} for name in patterns}
    both = {ALL: {**common, "patterns": list(patterns)}, DEFAULT: common}
    return {**alone, **{name: both[name] for name in together}}


class Arms:
    """A Dynamo backend. ``chosen`` is the arm that the compiled model runs: the graph as captured, at first."""

    def __init__(self, options: dict[str, dict[str, Any]]) -> None:
        self.backends = {name: fxfuse.Backend(**given) for name, given in options.items()}
        self.reports: dict[str, list[fxfuse.Report | None]] = {name: [] for name in options}
        self.failures: dict[str, str] = {}
        self.chosen = ORIGINAL
        self.calls: list[int] = []
        self.nodes = 0

    @property
    def graphs(self) -> int:
        return len(self.calls)

    def sites(self, arm: str) -> Iterator[tuple[fxfuse.Site, int]]:
        """The sites of all graphs, each with how often its graph has run since ``calls`` was set to zeros.

        A graph that Dynamo captured of one layer and uses for the others has one report and runs several times.
        """
        for report, times in zip(self.reports[arm], self.calls, strict=True):
            for site in report.sites if report is not None else ():
                yield site, times

    def __call__(self, gm: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        number = len(self.calls)
        self.calls.append(0)
        self.nodes += len(gm.graph.nodes)
        ways: dict[str, Callable[..., Any]] = {ORIGINAL: gm.forward}
        for name, backend in self.backends.items():
            try:
                ways[name] = backend(gm, examples)
                self.reports[name].append(fxfuse.reports()[-1])
            except Exception as error:
                self.failures.setdefault(name, failure(error))
                self.reports[name].append(None)
                ways[name] = gm.forward

        def run(*args: Any) -> Any:
            self.calls[number] += 1
            return ways[self.chosen](*args)

        return run


def failure(error: BaseException) -> str:
    """An exception in one line, with the place that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}{where}"
