"""Safeguards: the conditions on which soundness rests, by name, so that a test can lift one and see what it prevents.

Nothing in fxfuse lifts one. `bench/soundness` does, to prove of itself that it would find a wrong result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class Safeguard:
    """One named condition. Call it with the condition's truth where a rewrite depends on it."""

    __slots__ = ("lifted", "name", "prevents")

    def __init__(self, name: str, prevents: str) -> None:
        self.name = name
        self.prevents = prevents
        self.lifted = False

    def __call__(self, holds: object) -> bool:
        return bool(holds) or self.lifted


SAFEGUARDS: dict[str, Safeguard] = {}


def safeguard(name: str, prevents: str) -> Safeguard:
    """Declare a safeguard. ``prevents`` says in words what goes wrong without it."""
    if name in SAFEGUARDS:
        raise ValueError(f"safeguard {name!r} is declared twice.")
    made = SAFEGUARDS[name] = Safeguard(name, prevents)
    return made


@contextlib.contextmanager
def lifted(*names: str) -> Iterator[None]:
    """For tests: these safeguards hold always. An unknown name raises KeyError."""
    chosen = [SAFEGUARDS[name] for name in names]
    try:
        for one in chosen:
            one.lifted = True
        yield
    finally:
        for one in chosen:
            one.lifted = False
