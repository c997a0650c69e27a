"""A user's script, run as ``python script.py`` runs it, with every compile of it reported."""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fxfuse.backend import Backend
from fxfuse.engine import with_graph_number
from fxfuse.errors import OptionError
from fxfuse.report import Report
from fxfuse.report.history import collected


@dataclass
class Ran:
    """What came of a script: its reports, how it ended, and compiles that fxfuse could not look at."""

    reports: list[Report] = field(default_factory=list)
    code: int = 0
    others: list[str] = field(default_factory=list)
    replaced: int = 0


def run_script(path: str, arguments: Sequence[str]) -> Ran:
    """Run a script. Where it compiles with Inductor, fxfuse's backend takes its place, so that there is a report.

    Raises:
        OptionError: no such file.
    """
    if not os.path.isfile(path):
        raise OptionError(f"there is no script {path!r}.")
    ran = Ran()
    with collected() as reports, _compiles_with_fxfuse(ran), _argv(path, arguments):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            ran.code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            traceback.print_exc()
            ran.code = 1
    ran.reports = [with_graph_number(report, number) for number, report in enumerate(reports)]
    return ran


@contextlib.contextmanager
def _argv(path: str, arguments: Sequence[str]) -> Iterator[None]:
    saved, saved_path = sys.argv, list(sys.path)
    sys.argv = [path, *arguments]
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = saved, saved_path


@contextlib.contextmanager
def _compiles_with_fxfuse(ran: Ran) -> Iterator[None]:
    """For the script's time, ``torch.compile`` by Inductor is by fxfuse, with Inductor behind it."""
    original: Any = torch.compile

    def compile_(model: Any = None, **keywords: Any) -> Any:
        backend = keywords.get("backend", "inductor")
        if backend == "inductor":
            ran.replaced += 1
            mode, options = keywords.pop("mode", None), keywords.pop("options", None)
            keywords["backend"] = Backend(mode=mode, inner_options=dict(options or {}))
        elif backend != "fxfuse" and not isinstance(backend, Backend):
            ran.others.append(str(getattr(backend, "__name__", backend)))
        return original(model, **keywords)

    setattr(torch, "compile", compile_)  # noqa: B010  # a function of torch, for one script of one process
    try:
        yield
    finally:
        setattr(torch, "compile", original)  # noqa: B010  # as above
