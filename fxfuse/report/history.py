"""The reports of this process's compiles, newest last, bounded."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator

from fxfuse.report.record import Report

_LIMIT = 256
_KEPT: deque[Report] = deque(maxlen=_LIMIT)


def reports() -> tuple[Report, ...]:
    """The reports of this process's latest compiles (at most 256), newest last."""
    return tuple(_KEPT)


def keep(report: Report) -> None:
    _KEPT.append(report)
    for collected in _COLLECTING:
        collected.append(report)


_COLLECTING: list[list[Report]] = []


@contextlib.contextmanager
def collected() -> Iterator[list[Report]]:
    """Every report of the compiles inside the block, however many, each with whole graphs."""
    found: list[Report] = []
    _COLLECTING.append(found)
    try:
        yield found
    finally:
        _COLLECTING[:] = [other for other in _COLLECTING if other is not found]


def is_collecting() -> bool:
    """Whether somebody reads what is compiled now."""
    return bool(_COLLECTING)
