"""The errors that fxfuse raises, each a sentence with what was given and what would be valid."""

from __future__ import annotations

import difflib
import functools
import sys
import warnings
from collections.abc import Iterable
from typing import Any


class FxfuseError(Exception):
    """Base of every error that fxfuse raises on purpose."""


class OptionError(FxfuseError, ValueError):
    """A bad option, name, value or mode; a ``ValueError``.

    Inside a compile it is also Dynamo's ``ShortenTraceback`` (see :func:`readable`), so that it reaches the user as
    it is instead of wrapped in ``BackendCompilerFailed``.
    """


class PatternError(FxfuseError, ValueError):
    """A pattern, constraint or kernel that is wrong as written; raised where it is defined."""


class ExpectationError(OptionError):
    """``expect``, ``expect_rewritten``, ``paths`` or ``on_miss="error"`` was not met by the graph."""


class CaptureError(FxfuseError, RuntimeError):
    """``explain`` and its kind captured no graph, so that a report would be empty in silence."""


class UnreadableReport(FxfuseError, ValueError):
    """A file that a command was given is no report; exit code 2, since 1 says that reports differ."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """An error in a few words: its type, and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


@functools.cache
def _shortened(kind: Any) -> Any:
    from torch._dynamo.exc import ShortenTraceback

    def init(self: Any, message: str) -> None:
        ShortenTraceback.__init__(self, message, first_useful_frame=None)

    return type(kind.__name__, (kind, ShortenTraceback), {"__init__": init, "__module__": kind.__module__})


def readable(error: OptionError) -> OptionError:
    """The same error in the form that Dynamo hands on unwrapped; itself where Dynamo is not loaded."""
    if "torch._dynamo.exc" not in sys.modules or type(error).__init__ is not OptionError.__init__:
        return error
    made: OptionError = _shortened(type(error))(str(error))  # type: ignore[arg-type]  # a class hashes
    made.__cause__ = error.__cause__
    return made


_WARNED: set[str] = set()


def warn_once(sentence: str) -> None:
    """Warn, unless this process was told the same before."""
    if sentence not in _WARNED:
        _WARNED.add(sentence)
        warnings.warn(sentence, stacklevel=3)


def listed(words: Iterable[str]) -> str:
    """``a, b or c``."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def unknown(kind: str, given: object, valid: Iterable[object]) -> str:
    """The sentence for a name that does not exist: what was given, the nearest name, and all valid ones."""
    names = sorted(str(v) for v in valid)
    near = difflib.get_close_matches(str(given), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {given!r}.{hint} Valid: {', '.join(repr(n) for n in names) or 'none'}."
