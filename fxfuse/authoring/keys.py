"""Structural identity of terms: whether two of them are one canonical graph."""

from __future__ import annotations

from typing import Any

from fxfuse.authoring.terms import CaptureTerm, ChoiceTerm, DtypeTerm, ManyTerm, OpTerm, Term, TermGraph


class Keys:
    """Structural identity of terms: equal numbers for equal canonical graphs.

    Args:
        without: captures to leave out.
        casts: False: a cast is what it casts.
    """

    def __init__(self, without: frozenset[str] = frozenset(), *, casts: bool = True) -> None:
        self.without = without
        self.casts = casts
        self._numbers: dict[Any, int] = {}
        self._of: dict[Term, int] = {}

    def of(self, term: Any) -> Any:
        if isinstance(term, tuple):
            return ("tuple", tuple(self.of(item) for item in term))
        if isinstance(term, DtypeTerm):
            return ("dtype", self.of(term.of))
        if not isinstance(term, Term):
            return ("literal", repr(term))
        if not self.casts:
            term = _without_casts(term)
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
    """Whether an alternative is part of a larger one, so that one place may hold a smaller and a larger match.

    Two that differ in casts only are of one size: where the casts vanish, the first declared is taken.
    """
    keys = Keys(casts=False)  # which a site need not have
    for term in graph.order:
        if isinstance(term, ChoiceTerm):
            for label, alternative in term.alternatives.items():
                wanted = keys.of(alternative)
                others = [o for name, o in term.alternatives.items() if name != label and keys.of(o) != wanted]
                if any(keys.of(t) == wanted for other in others for t in graph.below(other)):
                    return True
    return False


def has_like_operands(graph: TermGraph, term: OpTerm) -> bool:
    """Whether both operands of a commutative op are of one form, each of captures of its own that stand nowhere else.

    Then a match with the operands swapped is one with them as they are, under other names.
    """
    a, b = term.args.get("input"), term.args.get("other")
    if a is b or not isinstance(a, Term) or not isinstance(b, Term):
        return False
    form = _private_form(graph, a, term)
    return form is not None and form == _private_form(graph, b, term)


def _private_form(graph: TermGraph, root: Term, parent: Term) -> Any:
    """The form of what only ``parent`` reads, with captures by kind and number; None where there is more to it."""
    inside = graph.below(root)
    taken = {*graph.outputs, *graph.dtype_sources}
    for term in inside:
        readers = graph.parents.get(term, [])
        private = readers == [parent] if term is root else inside.issuperset(readers)
        if not private or term.keep or term in taken or not isinstance(term, OpTerm | CaptureTerm):
            return None
    numbers: dict[Term, int] = {}

    def form(arg: Any) -> Any:
        if isinstance(arg, tuple):
            return tuple(map(form, arg))
        if isinstance(arg, CaptureTerm):
            return ("capture", numbers.setdefault(arg, len(numbers)), arg.capture)
        if isinstance(arg, OpTerm):
            args = tuple((name, form(a)) for name, a in arg.args.items())
            return (arg.op, arg.commutative, arg.wide, arg.result, args)
        return ("dtype", arg) if isinstance(arg, DtypeTerm) else ("literal", repr(arg))

    return form(root)


def _without_casts(term: Term) -> Term:
    while isinstance(term, OpTerm) and term.op == "cast":
        term = term.args["input"]
    return term
