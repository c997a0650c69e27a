"""Why a site was not rewritten: a code with its arguments. Text is made only when someone reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from fxfuse.authoring.terms import Term
from fxfuse.view import Value

CODES: dict[str, str] = {
    "OP": "another operation stands where the pattern has one",
    "ARITY": "an operand is missing, or one is there that the pattern does not have",
    "LITERAL": "a constant has another value",
    "DTYPE": "a dtype does not fit",
    "SHAPE": "a size does not fit",
    "BINDING": "two places that must hold the same value hold different ones",
    "ALTERNATIVES": "none of several alternatives matched",
    "EXTERNAL_USE": "an interior value is read outside the site",
    "GRAPH_OUTPUT": "an interior value is returned by the graph",
    "MUTATION": "something is written in place between the parts of the site",
    "CYCLE": "the fused node would depend on itself",
    "REGION": "a grad-mode or autocast region begins, ends or is open at the site",
    "NOT_A_PARAM": "a weight is not a parameter of the model, or not a plain one",
    "REQUIRES_GRAD": "a weight requires grad, and this placement cannot give it one",
    "CONSTRAINT": "a condition of the pattern does not hold",
    "OVERLAP": "another site took some of its nodes",
    "COST": "the kernel was not measured to win here",
    "NO_KERNEL": "no registered kernel can run this site",
    "REWRITE_ERROR": "the rewrite failed; the original graph was compiled",
    "VERIFY": "the fused site is further from float64 than the contract allows, fails, or could not be measured",
    "DISABLED": "switched off by an option",
    "STEP_LIMIT": "the search was stopped before it was complete",
}
"""Every reason code; stable, and each has an anchor in docs/reasons.md."""


@dataclass(frozen=True)
class Failure:
    """One reason. ``term`` is the pattern's place, ``operand`` the graph's; ``reader`` who else reads it."""

    code: str
    expected: Any = None
    found: Any = None
    term: Term | None = None
    operand: Any = None
    reader: fx.Node | None = None
    progress: int = 0
    variant: tuple[tuple[str, str], ...] = ()
    also: tuple[Failure, ...] = field(default=())

    @property
    def node(self) -> fx.Node | None:
        if isinstance(self.operand, Value):
            return self.operand.node
        return self.operand if isinstance(self.operand, fx.Node) else None

    def sentence(self) -> str:
        """What was expected and what was found, in words."""
        code, expected, found = self.code, _words(self.expected), _words(self.found)
        if code == "EXTERNAL_USE":
            return f"the result of {expected} is read outside the site"
        if code == "GRAPH_OUTPUT":
            return f"the result of {expected} is returned by the graph"
        if code == "NOT_A_PARAM":
            return f"{expected} must be a parameter or buffer of the model; found {found}"
        if code in {"OP", "LITERAL", "SHAPE", "DTYPE", "ARITY", "BINDING"} and self.found is not None:
            return f"expected {expected}, found {found}"
        return str(expected)


def _words(operand: Any) -> str:
    if isinstance(operand, Value):
        if operand.leaf is not None:
            return f"{operand.leaf.kind.value} {operand.leaf.path or operand.node.name}"
        return f"{operand.op} ({operand.node.name})"
    return str(operand)
