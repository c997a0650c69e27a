"""The results file of a machine: cells by key, written as a whole after each one, so that a run can be stopped."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fxfuse.benchmarks.environment import differing, slug
from fxfuse.benchmarks.errors import BenchError
from fxfuse.errors import listed

SCHEMA = 1
"""Version of the files' form; one of another version is not read."""

SUITES = ("op", "model", "compile", "memory")

_PARTS = ("environment", "rates", "steps", "cells")

_FIGURES = {
    "op": ("ms", "p20", "p80", "error_max", "error_rms"),
    "model": ("prefill_ms", "decode_ms", "prefill_tokens_s", "decode_tokens_s"),
    "compile": ("seconds",),
    "memory": ("held", "peak"),
}
"""What every arm of a cell has at least, as numbers."""


@dataclass
class File:
    """The results of one machine.

    Attributes:
        environment: what they hold for.
        rates: bytes copied, and floating-point operations of a matmul by dtype, per second.
        cells: figures by key (:func:`key`).
        steps: what `fxfuse bench all` did besides, in words.
    """

    path: str
    environment: dict[str, Any]
    rates: dict[str, float] = field(default_factory=dict)
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    steps: dict[str, str] = field(default_factory=dict)

    def lacks(self, cell: str, arms: Iterable[str]) -> list[str]:
        """The arms that a cell has neither figures of nor a reason for."""
        had = self.cells.get(cell, {})
        return [arm for arm in arms if arm not in had.get("arms", {}) and arm not in had.get("skipped", {})]

    def put(self, cell: str, suite: str, what: Mapping[str, Any], found: Mapping[str, Any], load: float) -> None:
        """Add a cell, or take it in place of the one of that key, and write the file."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.cells[cell] = {"suite": suite, "what": dict(what), "date": now, "load": load, **found}
        self.save()

    def save(self) -> None:
        """Write the file; one that was there stays whole until the new one is."""
        text = json.dumps(
            {
                "schema": SCHEMA,
                "environment": self.environment,
                "rates": self.rates,
                "steps": self.steps,
                "cells": {name: self.cells[name] for name in sorted(self.cells)},
            },
            indent=1,
        )
        folder = os.path.dirname(self.path)
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text + "\n")
            os.chmod(temporary, 0o644)
            os.replace(temporary, self.path)
        except BaseException:
            os.unlink(temporary)
            raise


def key(suite: str, what: Mapping[str, Any]) -> str:
    """The name of a cell: its suite, and what was measured."""
    return "/".join([suite, *(str(value) for value in what.values())])


def opened(folder: str, environment: dict[str, Any], *, fresh: bool = False) -> File:
    """The file of this machine in a folder, or an empty one.

    Args:
        fresh: do not look at what is there.

    Raises:
        BenchError: the file is no results file, or was measured in another environment.
    """
    path = os.path.join(folder, f"{slug(environment)}.json")
    if fresh or not os.path.exists(path):
        return File(path, environment)
    made = load(path)
    odd = differing(made.environment, environment)
    if odd is not None:
        raise BenchError(f"{path} was measured in another environment: {odd}. Give --fresh, or another --results.")
    made.environment = environment
    return made


def load(path: str) -> File:
    """Read a results file.

    Raises:
        BenchError: it is none; the message says in what.
    """
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} cannot be read as a results file: {error}") from error
    for problem in problems(data):
        raise BenchError(f"{path} is no results file: {problem}.")
    return File(path, data["environment"], data["rates"], data["cells"], data["steps"])


def load_all(folder: str) -> list[File]:
    """Every results file of a folder, by name.

    Raises:
        BenchError: one of them is none.
    """
    if not os.path.isdir(folder):
        return []
    return [load(os.path.join(folder, name)) for name in sorted(os.listdir(folder)) if name.endswith(".json")]


def problems(data: Any) -> list[str]:
    """In what plain data is not a results file; nothing where it is one."""
    if not isinstance(data, dict):
        return [f"it holds a {type(data).__name__}, not an object"]
    if data.get("schema") != SCHEMA:
        return [f"its schema is {data.get('schema')!r}, and {SCHEMA} is read"]
    found = [f"{name} is missing" for name in _PARTS if not isinstance(data.get(name), dict)]
    if found:
        return found
    found += [f"rates: {name} is no number" for name, rate in data["rates"].items() if not _is_positive(rate)]
    for name, cell in data["cells"].items():
        found += [f"{name}: {problem}" for problem in _cell_problems(name, cell)]
    return found


def _cell_problems(name: str, cell: Any) -> list[str]:
    suite = cell.get("suite") if isinstance(cell, dict) else None
    if suite not in SUITES:
        return [f"its suite is {suite!r}, not {listed(SUITES)}"]
    lacking = [part for part in ("what", "arms", "skipped") if not isinstance(cell.get(part), dict)]
    if lacking:
        return [f"{lacking[0]} is missing"]
    if key(suite, cell["what"]) != name:
        return [f"it holds {key(suite, cell['what'])}"]
    found = [f"{arm} is measured and skipped" for arm in cell["arms"] if arm in cell["skipped"]]
    for arm, figures in cell["arms"].items():
        odd = [f for f in _FIGURES[suite] if not isinstance(figures, dict) or not _is_number(figures.get(f))]
        found += [f"{arm} has no {figure}" for figure in odd]
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0
