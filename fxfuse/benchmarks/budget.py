"""Time that a run may take: a cell begins only while one as long as the longest so far would still fit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """Seconds from now on; None: as many as it takes."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._longest = 0.0

    @property
    def left(self) -> float | None:
        """Seconds that are left, at least 0; None: as many as it takes."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    @property
    def allows(self) -> bool:
        """Whether one more may begin."""
        return self._end is None or time.monotonic() + self._longest < self._end

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Around what is counted as one."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._longest = max(self._longest, time.monotonic() - start)
