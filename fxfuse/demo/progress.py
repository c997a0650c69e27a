"""Shows what a long compile is doing: a spinner with the phase and the elapsed time, on a terminal only."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

# The innermost module on the stack that is listed here names the phase.
PHASES = (
    ("torch._inductor.codecache", "compiling generated code"),
    ("torch._inductor.cpp_builder", "compiling generated code"),
    ("torch._inductor.async_compile", "compiling generated code"),
    ("torch._inductor", "Inductor"),
    ("torch._functorch", "AOTAutograd"),
    ("fxfuse.view", "matching patterns"),
    ("fxfuse.match", "matching patterns"),
    ("fxfuse.params", "preparing weights"),
    ("fxfuse.rewriting", "rewriting"),
    ("fxfuse.backend", "fxfuse"),
    ("fxfuse.engine", "fxfuse"),
    ("torch._dynamo", "tracing"),
    ("fxfuse.demo.load", "reading"),
    ("fxfuse.demo", "running"),
)


def phase(frame: FrameType | None) -> str:
    """What a thread is doing, by the modules on its stack."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        for prefix, name in PHASES:
            if module == prefix or module.startswith(prefix + "."):
                return name
        frame = frame.f_back
    return "running"


class PhaseColumn(ProgressColumn):
    """The phase of the thread that made the display; read by the display's own thread at each refresh."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def render(self, task: Task) -> Text:
        return Text(phase(sys._current_frames().get(self.thread)), style="dim")


@contextmanager
def working(console: Console, what: str) -> Iterator[None]:
    """A spinner around something that takes seconds; prints nothing when the output is no terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), PhaseColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(what, total=None)
        yield
