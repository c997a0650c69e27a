"""Structural identity of terms: whether two of them are one canonical graph."""

from __future__ import annotations

from typing import Any

from fxfuse.authoring.terms import CaptureTerm, ChoiceTerm, DtypeTerm, ManyTerm, OpTerm, Term, TermGraph


class Keys:
    """Structural identity of terms: equal numbers for equal canonical graphs. ``without``: captures to leave out."""

    def __init__(self, without: frozenset[str] = frozenset()) -> None:
        self.without = without
        self._numbers: dict[Any, int] = {}
        self._of: dict[Term, int] = {}

    def of(self, term: Any) -> Any:
        if isinstance(term, tuple):
            return ("tuple", tuple(self.of(item) for item in term))
        if isinstance(term, DtypeTerm):
            return ("dtype", self.of(term.of))
        if not isinstance(term, Term):
            return ("literal", repr(term))
        if term not in self._of:
            self._of[term] = self._numbers.setdefault(self._key(term), len(self._numbers))
        return self._of[term]

    def _key(self, term: Term) -> Any:
        if isinstance(term, CaptureTerm):
            return ("capture", term.name)
        if isinstance(term, ChoiceTerm):
            name = "." if term.name.startswith(".") else term.name
            return ("choice", name, tuple((label, self.of(t)) for label, t in term.alternatives.items()))
        if isinstance(term, ManyTerm):
            return ("many", term.least, self.of(term.element))
        assert isinstance(term, OpTerm)
        gone = {k for k, a in term.args.items() if isinstance(a, CaptureTerm) and a.name in self.without}
        args = [(name, self.of(arg)) for name, arg in term.args.items() if name not in gone]
        if term.commutative:
            pair = sorted((key for name, key in args if name in {"input", "other"}), key=repr)
            args = [*(("", key) for key in pair), *(a for a in args if a[0] not in {"input", "other"})]
        return (term.op, term.keep, term.commutative, term.wide, tuple(args))


def key_of(graph: TermGraph, without: frozenset[str] = frozenset()) -> Any:
    """A graph's structural identity, comparable between traces of one reference."""
    keys = Keys(without)
    roots = [keys.of(output) for output in graph.outputs]
    return tuple(roots), tuple(keys._numbers)


def has_nested_alternatives(graph: TermGraph) -> bool:
    """Whether an alternative is part of another one, so that one place may hold a smaller and a larger match."""
    keys = Keys()
    for term in graph.order:
        if isinstance(term, ChoiceTerm):
            bare = [(label, _without_casts(t)) for label, t in term.alternatives.items()]
            for label, alternative in bare:
                wanted = keys.of(alternative)
                others = (other for name, other in bare if name != label)
                if any(keys.of(t) == wanted for other in others for t in graph.below(other)):
                    return True
    return False


def _without_casts(term: Term) -> Term:
    while isinstance(term, OpTerm) and term.op == "cast":
        term = term.args["input"]
    return term
