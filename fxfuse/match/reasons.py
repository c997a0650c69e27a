"""Why a site was not rewritten: a code with its arguments. Text is made only when someone reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from fxfuse.authoring.terms import CaptureTerm, ChoiceTerm, OpTerm, Term
from fxfuse.errors import listed
from fxfuse.view import Leaf, Value

CODES: dict[str, str] = {
    "OP": "another operation stands where the pattern has one",
    "ARITY": "an operand is missing, or one is there that the pattern does not have",
    "LITERAL": "a constant has another value",
    "DTYPE": "a dtype does not fit",
    "SHAPE": "a size does not fit",
    "BINDING": "two places that must hold the same value hold different ones",
    "ALTERNATIVES": "none of several alternatives matched, and none got farther than the others",
    "EXTERNAL_USE": "an interior value is read outside the site",
    "GRAPH_OUTPUT": "an interior value is returned by the graph",
    "MUTATION": "something is written in place between the parts of the site",
    "CYCLE": "the fused node would depend on itself",
    "REGION": "a grad-mode or autocast region begins, ends or is open at the site",
    "NOT_A_PARAM": "a weight is not a parameter of the model, or not a plain one",
    "REQUIRES_GRAD": "a weight requires grad, and no kernel that could run here has a backward",
    "CONSTRAINT": "a condition of the pattern does not hold",
    "OVERLAP": "another site took some of its nodes",
    "COST": "the kernel was not measured to win here",
    "NO_KERNEL": "no registered kernel can run this site",
    "REWRITE_ERROR": "the rewrite failed; the original graph was compiled",
    "VERIFY": "the fused site differs from the original by more than the contract allows",
    "DISABLED": "switched off by an option",
    "STEP_LIMIT": "the search was stopped before it was complete",
}
"""Every reason code; stable, and each has an anchor in docs/reasons.md."""

OF_GATES = frozenset({"EXTERNAL_USE", "GRAPH_OUTPUT", "MUTATION", "CYCLE", "REGION", "CONSTRAINT"})
"""What only a place is refused for where the whole pattern is."""

STRUCTURE = frozenset({"OP", "ARITY", "ALTERNATIVES"})
"""What says that an operation of the pattern, or an operand, is not there."""

_COMPARES = STRUCTURE | {"LITERAL", "DTYPE", "SHAPE", "BINDING"}


@dataclass(frozen=True)
class Failure:
    """One reason.

    Attributes:
        expected, found: what differs, as values, terms or words.
        term: the pattern's place; ``operand``: the graph's.
        reader: who else reads, writes or returns it.
        between: whether what was expected is there, and ``found`` stands in front of it.
        progress: how many operations were bound when it was met; ``variant``: with which alternatives.
        also: further reasons at the same site; ``tried``: the alternatives that were not taken, best first.
    """

    code: str
    expected: Any = None
    found: Any = None
    term: Term | None = None
    operand: Any = None
    reader: fx.Node | None = None
    progress: int = 0
    variant: tuple[tuple[str, str], ...] = ()
    also: tuple[Failure, ...] = field(default=())
    tried: tuple[Attempt, ...] = field(default=())
    between: bool = False

    @property
    def node(self) -> fx.Node | None:
        if isinstance(self.operand, Value):
            return self.operand.node
        return self.operand if isinstance(self.operand, fx.Node) else None

    def sentence(self) -> str:
        """What was expected and what was found, in words."""
        code, expected, found = self.code, words(self.expected), words(self.found)
        if code == "EXTERNAL_USE":
            return f"the result of {expected} is read outside the site"
        if code == "GRAPH_OUTPUT":
            return f"the result of {expected} is returned by the graph"
        if code == "NOT_A_PARAM":
            return f"{expected} must be a parameter or buffer of the model; found {found}"
        if code == "BINDING" and isinstance(self.term, CaptureTerm):
            expected = f"{self.term} to be {expected} as elsewhere in the site"
        if code in _COMPARES and self.found is not None:
            return f"expected {expected}, found {found}" + (" in between" if self.between else "")
        return expected


@dataclass(frozen=True)
class Attempt:
    """An alternative of a ``one_of`` that was not taken: where it stopped, and how many operations of it were found.

    ``settled``: another alternative fits, and the reason lies elsewhere, so that the choice is not in question.
    """

    choice: str
    label: str
    reason: Failure
    matched: int = 0
    settled: bool = False


def expected_words(failure: Failure) -> str:
    """What the pattern wanted, in words; empty where the reason compares nothing."""
    return words(failure.expected) if failure.found is not None else ""


def found_words(failure: Failure) -> str:
    """What the graph has instead, in words."""
    return words(failure.found) if failure.found is not None else ""


def one_of_words(choice: ChoiceTerm) -> str:
    """``norm=early, late or offset``."""
    return f"{choice.name}={listed(choice.alternatives)}"


def place_of(term: Term | None) -> str:
    """What stands at a place of the pattern: an op's, a capture's or a choice's name."""
    return term.op if isinstance(term, OpTerm) else str(getattr(term, "name", ""))


def in_words(wanted: Any) -> str:
    """A term, a literal or a tuple of these, as a reader knows it."""
    return f"({', '.join(map(in_words, wanted))})" if isinstance(wanted, tuple) else str(wanted)


def leaf_words(leaf: Leaf, name: str) -> str:
    """An input of the graph, which is the node ``name``, as a reader knows it."""
    return f"{leaf.kind.value} {leaf.path or name}"


def words(operand: Any) -> str:
    """A value of the graph as a reader knows it: a parameter by its path, a result by its op and node."""
    if isinstance(operand, Value):
        if operand.leaf is not None:
            return leaf_words(operand.leaf, operand.node.name)
        return f"{operand.op} ({operand.node.name})"
    return str(operand)
