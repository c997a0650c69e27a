"""The reports of this process's compiles, newest last, bounded."""

from __future__ import annotations

from collections import deque

from fxfuse.report.record import Report

_LIMIT = 256
_KEPT: deque[Report] = deque(maxlen=_LIMIT)


def reports() -> tuple[Report, ...]:
    """The reports of this process's latest compiles (at most 256), newest last."""
    return tuple(_KEPT)


def keep(report: Report) -> None:
    _KEPT.append(report)
