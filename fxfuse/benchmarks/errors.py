"""What a benchmark raises when it cannot be run as it was asked for."""

from __future__ import annotations

from fxfuse.errors import FxfuseError


class BenchError(FxfuseError, ValueError):
    """A device, arm, shape or results file that is not there or does not fit."""
