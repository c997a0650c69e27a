"""Terms: a pattern in canonical form, a small directed acyclic graph that the matcher walks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from fxfuse.authoring.captures import Capture, is_many, is_scalar


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
    """A node of a pattern. ``line`` is where the author wrote it; ``keep``: others may read its value, too."""

    line: Line
    keep: bool = field(default=False, kw_only=True)

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
    """A canonical op. ``args`` maps argument names to terms, :class:`DtypeTerm`, literals, or tuples of these.

    ``wide``: what the author wrote is this op in fp32 and wider only. ``result``: the dtype that the result must have,
    where a cast to it was left out because promotion makes it.
    """

    op: str
    args: Mapping[str, Any]
    commutative: bool = False
    distinctive: bool = False
    wide: bool = False
    result: torch.dtype | None = None

    def children(self) -> Iterator[Term]:
        for arg in self.args.values():
            yield from terms_in(arg)

    def __str__(self) -> str:
        return f"{self.op}({', '.join(str(a) for a in self.args.values())})"


@dataclass(eq=False)
class ChoiceTerm(Term):
    """One of several terms. Choices with the same name in one pattern are one choice.

    A name that begins with a dot is no choice of the author's: it is a formula that is one op in fp32 and not in bf16.
    """

    name: str
    alternatives: Mapping[str, Term]

    def children(self) -> Iterator[Term]:
        return iter(self.alternatives.values())

    def __str__(self) -> str:
        return self.name


@dataclass(eq=False)
class ManyTerm(Term):
    """Every reader of the shared values that is ``element``, at least ``least`` of them: an output of the pattern."""

    element: Term
    least: int

    def children(self) -> Iterator[Term]:
        yield self.element

    @cached_property
    def own(self) -> frozenset[Term]:
        """The terms that each sibling has for itself: those that a ``many`` capture is part of."""
        memo: dict[Term, bool] = {}

        def depends(term: Term) -> bool:
            if term not in memo:
                here = isinstance(term, CaptureTerm) and is_many(term.capture)
                memo[term] = any([here, *map(depends, term.children())])
            return memo[term]

        depends(self.element)
        return frozenset(t for t, yes in memo.items() if yes)

    @cached_property
    def shared(self) -> frozenset[Term]:
        """The tensors that the siblings have in common, down to their captures."""
        found: dict[Term, None] = {}
        pending: list[Term] = [self.element]
        while pending:
            for term in pending.pop().children():
                if term not in found:
                    found[term] = None
                    pending.append(term)
        return frozenset(t for t in found if t not in self.own and not is_number(t))

    def __str__(self) -> str:
        return f"many {self.element}"


def is_number(term: Term) -> bool:
    """Whether a term is a Scalar, which is no tensor that a search could go on from."""
    return isinstance(term, CaptureTerm) and is_scalar(term.capture)


@dataclass(frozen=True)
class DtypeTerm:
    """The dtype of another term: ``x.dtype``."""

    of: Term

    def __str__(self) -> str:
        return f"{self.of}.dtype"


def terms_in(arg: Any) -> Iterator[Term]:
    """The terms of an argument, which may be a tuple of them."""
    if isinstance(arg, Term):
        yield arg
    elif isinstance(arg, tuple):
        for item in arg:
            yield from terms_in(item)


@dataclass(eq=False)
class TermGraph:
    """A pattern's terms: its outputs, every term in topological order, and who uses which.

    Attributes:
        absent: optional captures that this form of the pattern was traced without.
        primary: the output from which a search climbs first; of a ``many``, its element.
        seeds: the terms to start a search from: distinctive ops nearest the primary output, one of which every match
            contains.
    """

    outputs: tuple[Term, ...]
    absent: frozenset[str] = frozenset()
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

        for output in self.outputs:
            visit(output)
        self.primary, self.seeds = self._start()

    def below(self, term: Term) -> frozenset[Term]:
        """The term and everything that it is made of."""
        found: dict[Term, None] = {}
        pending = [term]
        while pending:
            at = pending.pop()
            if at not in found:
                found[at] = None
                pending += at.children()
        return frozenset(found)

    @cached_property
    def dtype_sources(self) -> frozenset[Term]:
        """The terms whose dtype something else is cast to."""
        args = (arg for term in self.order if isinstance(term, OpTerm) for arg in term.args.values())
        return frozenset(arg.of for arg in args if isinstance(arg, DtypeTerm))

    @cached_property
    def under(self) -> dict[Term, frozenset[Term]]:
        """What each output is made of, of a ``many`` its element."""
        roots = [o.element if isinstance(o, ManyTerm) else o for o in self.outputs]
        return {root: self.below(root) for root in roots}

    @cached_property
    def deciding(self) -> tuple[Term, ...]:
        """The terms on which a match's outputs depend: the outputs, and of a ``many`` what its siblings read."""
        found: dict[Term, None] = {}
        for output in self.outputs:
            if isinstance(output, ManyTerm):
                own = output.own
                read = (t for t in self.order if t not in own and not own.isdisjoint(self.parents.get(t, ())))
                found.update(dict.fromkeys(read))
            else:
                found[output] = None
        return tuple(found)

    @cached_property
    def choices_of_siblings(self) -> tuple[str, ...]:
        """The choices inside ``many`` outputs."""
        own = {t for output in self.outputs if isinstance(output, ManyTerm) for t in output.own}
        return tuple(dict.fromkeys(t.name for t in self.order if t in own and isinstance(t, ChoiceTerm)))

    @cached_property
    def choices(self) -> dict[str, tuple[str, ...]]:
        written = (t for t in self.order if isinstance(t, ChoiceTerm) and not t.name.startswith("."))
        return {t.name: tuple(t.alternatives) for t in written}

    @property
    def operations(self) -> int:
        return sum(isinstance(t, OpTerm) for t in self.order)

    def _start(self) -> tuple[Term, tuple[OpTerm, ...]]:
        plain: list[Term] = [o for o in self.outputs if not isinstance(o, ManyTerm)]
        roots = plain or [o.element for o in self.outputs if isinstance(o, ManyTerm)]
        cuts = [(cut, root) for root in roots if (cut := _cut(root, 0)) is not None]
        if cuts:
            (_, seeds), root = min(cuts, key=lambda c: (c[0][0], len(c[0][1])))
            return root, seeds
        return roots[0], tuple(dict.fromkeys(_outermost(roots[0])))


def _cut(term: Term, depth: int) -> tuple[int, tuple[OpTerm, ...]] | None:
    """Distinctive ops nearest to ``term``, one of which is in every match of it, with their depth."""
    if isinstance(term, OpTerm) and term.distinctive:
        return depth, (term,)
    if isinstance(term, ChoiceTerm):
        cuts = [_cut(alternative, depth) for alternative in term.alternatives.values()]
        found = [c for c in cuts if c is not None]
        if len(found) < len(cuts):
            return None
        return max(d for d, _ in found), tuple(dict.fromkeys(t for _, ts in found for t in ts))
    below = [c for c in (_cut(child, depth + 1) for child in term.children()) if c is not None]
    return min(below, key=lambda c: (c[0], len(c[1])), default=None)


def _outermost(term: Term) -> Iterator[OpTerm]:
    """Ops of which one is in every match: of each alternative its distinctive ones, else those nearest the root.

    Casts may be absent at a site, so they are none.
    """
    if isinstance(term, ChoiceTerm):
        for alternative in term.alternatives.values():
            cut = _cut(alternative, 0)
            yield from cut[1] if cut is not None else _outermost(alternative)
    elif isinstance(term, OpTerm) and term.op == "cast":
        yield from _outermost(term.args["input"])
    elif isinstance(term, OpTerm):
        yield term
