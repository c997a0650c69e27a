"""What a check finds wrong, as data: which check, which way, what, and a graph that a person can paste."""

from __future__ import annotations

from dataclasses import dataclass

from fxfuse.errors import FxfuseError


class CheckError(FxfuseError, ValueError):
    """A pattern that cannot be checked: no example of it can be built."""


class NotHere(CheckError):
    """A way of a pattern that torch does not implement on this device, whatever the sizes."""


@dataclass(frozen=True)
class Failure:
    """One thing that a pattern, or a kernel of it, does wrong.

    Attributes:
        check: which check found it: example, positive, respelling, mutant, variant, kernel, numerics, gradient.
        way: the variant and the operands that were there.
        what: a sentence.
        seed: of the random choices that led to it.
        repro: a script that shows it.
    """

    check: str
    way: str
    what: str
    seed: int
    repro: str = ""
