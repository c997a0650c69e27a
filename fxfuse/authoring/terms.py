"""Terms: a pattern in canonical form, a small directed acyclic graph that the matcher walks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fxfuse.authoring.captures import Capture


@dataclass(frozen=True)
class Line:
    """A line of the author's code."""

    file: str
    number: int
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.number}"


@dataclass(eq=False)
class Term:
    """A node of a pattern. ``line`` is where the author wrote it."""

    line: Line

    def children(self) -> Iterator[Term]:
        return iter(())


@dataclass(eq=False)
class CaptureTerm(Term):
    name: str
    capture: Capture

    def __str__(self) -> str:
        return self.name


@dataclass(eq=False)
class OpTerm(Term):
    """A canonical op. ``args`` maps argument names to terms, :class:`DtypeTerm` or literals."""

    op: str
    args: Mapping[str, Any]
    commutative: bool = False
    distinctive: bool = False

    def children(self) -> Iterator[Term]:
        for arg in self.args.values():
            if isinstance(arg, Term):
                yield arg

    def __str__(self) -> str:
        return f"{self.op}({', '.join(str(a) for a in self.args.values())})"


@dataclass(eq=False)
class ChoiceTerm(Term):
    """One of several terms. Choices with the same name in one pattern are one choice."""

    name: str
    alternatives: Mapping[str, Term]

    def children(self) -> Iterator[Term]:
        return iter(self.alternatives.values())

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class DtypeTerm:
    """The dtype of another term: ``x.dtype``."""

    of: Term

    def __str__(self) -> str:
        return f"{self.of}.dtype"


@dataclass
class TermGraph:
    """A pattern's terms: the root, every term in topological order, and who uses which."""

    root: Term
    order: list[Term] = field(default_factory=list)
    parents: dict[Term, list[Term]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: set[int] = set()

        def visit(term: Term) -> None:
            if id(term) in seen:
                return
            seen.add(id(term))
            for child in term.children():
                visit(child)
                users = self.parents.setdefault(child, [])
                if term not in users:
                    users.append(term)
            self.order.append(term)

        visit(self.root)

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        return {t.name: tuple(t.alternatives) for t in self.order if isinstance(t, ChoiceTerm)}

    def seeds(self) -> tuple[OpTerm, ...]:
        """The terms to start a search from: distinctive ops nearest the root, one of which every match contains."""

        def cut(term: Term, depth: int) -> tuple[int, tuple[OpTerm, ...]] | None:
            if isinstance(term, OpTerm) and term.distinctive:
                return depth, (term,)
            if isinstance(term, ChoiceTerm):
                cuts = [cut(alternative, depth) for alternative in term.alternatives.values()]
                if all(c is not None for c in cuts):
                    found = [c for c in cuts if c is not None]
                    terms = dict.fromkeys(t for _, ts in found for t in ts)
                    return max(d for d, _ in found), tuple(terms)
                return None
            below = [c for c in (cut(child, depth + 1) for child in term.children()) if c is not None]
            return min(below, key=lambda c: (c[0], len(c[1])), default=None)

        found = cut(self.root, 0)
        if found is not None:
            return found[1]
        return tuple(dict.fromkeys(_outermost(self.root)))


def _outermost(term: Term) -> Iterator[OpTerm]:
    """The ops nearest the root, one on each way to it; casts may be absent at a site, so they are none."""
    if isinstance(term, ChoiceTerm):
        for alternative in term.alternatives.values():
            yield from _outermost(alternative)
    elif isinstance(term, OpTerm) and term.op == "cast":
        yield from _outermost(term.args["input"])
    elif isinstance(term, OpTerm):
        yield term
