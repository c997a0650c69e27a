"""Where the view's rules register themselves, by the op that they read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fxfuse.view.values import Value

if TYPE_CHECKING:
    from fxfuse.view.view import View

SeeThrough = Callable[["View", Value], Value | None]
Rule = Callable[["View", Value], Value | None]

SEE_THROUGH: dict[str, list[SeeThrough]] = {}
RULES: dict[str, list[tuple[str, Rule]]] = {}


class Prepared:
    """The rules of one op, each with the ops of which it reads at least one: most values have no such operand."""

    def __init__(self) -> None:
        self.rules: list[tuple[Rule, frozenset[str] | None]] = []
        self.reads: frozenset[str] = frozenset()
        """What any of them reads."""
        self.always = False
        """Whether one of them is asked whatever the operands are."""

    def add(self, function: Rule, reads: frozenset[str] | None) -> None:
        self.rules.append((function, reads))
        self.reads |= reads or frozenset()
        self.always |= reads is None


PREPARED: dict[str, Prepared] = {}
WITHOUT_METADATA = {"contiguous", "clone", "alias", "dropout"}
"""Ops that a pattern is seen through at, too: their rules need neither shape nor dtype."""


def see_through(*ops: str) -> Callable[[SeeThrough], SeeThrough]:
    """Register a rule that says which earlier value one of these ops is, if any."""

    def register(rule: SeeThrough) -> SeeThrough:
        for op in ops:
            SEE_THROUGH.setdefault(op, []).append(rule)
        return rule

    return register


SETTLED: set[Rule] = set()
"""Rules after which no other one is asked."""


def rule(source: str, target: str, reads: str = "", *, settled: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule that turns ``source`` into ``target``.

    Args:
        reads: it is asked only where an operand is one of these: an op, ``number`` for a literal, or ``itself`` for a
            value that is both operands.
        settled: what it gives is canonical, so that no rule need be asked again.
    """

    def register(function: Rule) -> Rule:
        RULES.setdefault(source, []).append((target, function))
        if settled:
            SETTLED.add(function)
        PREPARED.setdefault(source, Prepared()).add(function, frozenset(reads.split()) or None)
        return function

    return register
