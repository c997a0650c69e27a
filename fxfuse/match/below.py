"""Below a difference: the part of a pattern that something stands in front of, or that is read by something else.

An OLMo2 block adds the residual between a norm and its MLP, a mixture of experts has other ops where the projections
were. What is there as a whole behind the difference belongs to the near miss: it is what a reader has in mind.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from fxfuse.authoring.terms import ChoiceTerm, OpTerm, Term
from fxfuse.match.comparing import MOST_READERS, Comparison, Fit, Hole, first_op, is_a_view, spellings
from fxfuse.match.reasons import Failure
from fxfuse.view import Value, View
from fxfuse.view.view import operands_in

_WHOLE = 3
"""Fewer operations are found by chance."""
_REACH = 16
"""How many values are looked at below a difference."""
_FORMULA = 3
"""How many steps an op that is spelled as a formula may have."""


def deepened(compare: Comparison, fit: Fit) -> tuple[Fit, list[Failure]]:
    """``fit`` with what is found again below its differences, and who else reads that."""
    holes: list[Hole] = []
    outside: list[Failure] = []
    for hole in fit.holes:
        again = _again(compare, hole)
        deepest = _deepest(compare, hole) if again is None or again[0] is not hole.term else None
        if deepest is not None:
            holes += deepest.holes
            fit = fit.add(deepest._replace(holes=()))
        elif again is not None:
            term, value, found, passed = again
            fit = fit.add(found)
            if term is hole.term:
                name = f"{term.name} ({first_op(term)})" if isinstance(term, ChoiceTerm) else first_op(term)
                hole = Hole("OP", term, hole.operand, name, hole.operand, between=True)
            holes.append(hole)
            outside += _read_outside(compare.view, term, value, {*passed, *_nodes(fit)})
        else:
            holes.append(hole)
    return fit._replace(holes=tuple(holes)), outside


def _deepest(compare: Comparison, hole: Hole) -> Fit | None:
    """Of a choice that is a hole, the alternative that is all there but for something in between, if one is."""
    choice = hole.term
    if hole.code != "ALTERNATIVES" or not isinstance(choice, ChoiceTerm):
        return None
    for label, alternative in choice.alternatives.items():
        fit, _ = deepened(compare, compare.fit(alternative, hole.operand))
        if fit.matched >= _WHOLE and all(h.between for h in fit.holes):
            return fit._replace(choices=((choice.name, label), *fit.choices))
    return None


def _again(compare: Comparison, hole: Hole) -> tuple[Term, Value, Fit, list[fx.Node]] | None:
    """What the hole should be, or else a part of it, found whole below what stands there; and what lies between."""
    differs = hole.code in {"OP", "ALTERNATIVES"} and not hole.between and not hole.upward
    if not differs or not isinstance(hole.operand, Value):
        return None
    below = _underneath(compare.view, hole.operand)
    terms = [t for t in (hole.term, *_made_of(hole.term)) if isinstance(t, OpTerm | ChoiceTerm)]
    for place, value in enumerate(below):
        for term in terms:
            fit = compare.fit(term, value)
            if not fit.holes and fit.matched >= _WHOLE:
                return term, value, fit, [n for v in (hole.operand, *below[:place]) for n in v.nodes]
    return None


def _underneath(view: View, at: Value) -> list[Value]:
    """What a value is computed from, nearest first."""
    found: dict[int, Value] = {}
    pending = [at] if at.leaf is None else []
    for value in pending:
        raw = value.args if value.known else {"": tuple(value.node.all_input_nodes)}
        for operand in map(view.operand, operands_in(raw)):
            if operand.leaf is None and id(operand) not in found and len(found) < _REACH:
                found[id(operand)] = operand
                pending.append(operand)
    return list(found.values())


def _read_outside(view: View, term: Term, value: Value, inside: set[fx.Node]) -> Iterator[Failure]:
    """The first reader that is not inside, and not on the way back into it: an op spelled as a formula reads twice."""
    pending = [value]
    for at in pending:
        for user in view.users(at)[:MOST_READERS]:
            if is_a_view(user):
                pending.append(user)
            elif inside.isdisjoint(_onward(user.node)) and inside.isdisjoint(user.nodes):
                op = next((t for t in spellings(term) if isinstance(t, OpTerm)), term)
                yield Failure("EXTERNAL_USE", value, None, op, value, user.node)
                return


def _onward(node: fx.Node) -> set[fx.Node]:
    """A node and what is computed from it within a few steps."""
    found = {node}
    for _ in range(_FORMULA):
        found |= {user for n in found for user in n.users}
    return found


def _made_of(term: Term) -> Iterator[Term]:
    """What a term reads; of a choice, what any of its alternatives reads."""
    for spelling in spellings(term):
        if isinstance(spelling, OpTerm):
            yield from spelling.children()


def _nodes(fit: Fit) -> Iterator[fx.Node]:
    for _, value in fit.places:
        if isinstance(value, Value):
            yield from value.nodes
