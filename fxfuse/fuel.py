"""Optimisation fuel: how many sites may still be rewritten. ``FXFUSE_LIMIT=17`` rewrites a process's first 17 sites.

For finding the rewrite that breaks something, by hand or with :func:`fxfuse.bisect`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar

from fxfuse.errors import OptionError

VARIABLE = "FXFUSE_LIMIT"


class Fuel:
    """A count of rewrites, with a limit (None: without end). ``used`` counts what was asked for, granted or not."""

    def __init__(self, limit: int | None, name: str = VARIABLE) -> None:
        self.limit = limit
        self.name = name
        self.used = 0

    def take(self) -> str | None:
        """None where one more site may be rewritten; else why not."""
        self.used += 1
        if self.limit is None or self.used <= self.limit:
            return None
        return f"{self.name}={self.limit}: {self.limit} sites were rewritten before this one"


_LENT: ContextVar[Fuel | None] = ContextVar("fuel", default=None)
_PROCESS = Fuel(None)


@contextlib.contextmanager
def limited(limit: int | None) -> Iterator[Fuel]:
    """For a ``with`` block, fuel of its own, whatever the environment says."""
    fuel = Fuel(limit, "limit")
    token = _LENT.set(fuel)
    try:
        yield fuel
    finally:
        _LENT.reset(token)


def current() -> Fuel:
    """The fuel of the block, or the process's, which begins anew where the variable changes.

    Raises:
        OptionError: the variable is no whole number.
    """
    global _PROCESS
    lent = _LENT.get()
    if lent is not None:
        return lent
    given = os.environ.get(VARIABLE, "").strip()
    if given and not given.isdigit():
        raise OptionError(f"{VARIABLE} is how many sites may be rewritten, a number of at least 0; given {given!r}.")
    limit = int(given) if given else None
    if _PROCESS.limit != limit:
        _PROCESS = Fuel(limit)
    return _PROCESS
