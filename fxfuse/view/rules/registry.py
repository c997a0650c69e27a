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
PREPARED: dict[str, list[tuple[Rule, frozenset[str] | None]]] = {}
"""The same, each rule with the ops of which it reads at least one: most values have no such operand."""
WITHOUT_METADATA = {"contiguous", "clone", "alias", "dropout"}
"""Ops that a pattern is seen through at, too: their rules need neither shape nor dtype."""


def see_through(*ops: str) -> Callable[[SeeThrough], SeeThrough]:
    """Register a rule that says which earlier value one of these ops is, if any."""

    def register(rule: SeeThrough) -> SeeThrough:
        for op in ops:
            SEE_THROUGH.setdefault(op, []).append(rule)
        return rule

    return register


def rule(source: str, target: str, reads: str = "") -> Callable[[Rule], Rule]:
    """Register a rule that turns ``source`` into ``target``. It is asked only where an operand is one of ``reads``."""

    def register(function: Rule) -> Rule:
        RULES.setdefault(source, []).append((target, function))
        PREPARED.setdefault(source, []).append((function, frozenset(reads.split()) or None))
        return function

    return register
