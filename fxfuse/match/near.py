"""Near misses: how far a pattern got where it did not match, counting past the first difference.

The search stops at the first thing that differs. A reader wants to know what else fits, so here a mismatch is a hole
and the comparison goes on around it, outwards from the seed, choosing at every fork the side that fits best.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fxfuse.authoring import Pattern
from fxfuse.authoring.captures import is_optional
from fxfuse.authoring.terms import CaptureTerm, ChoiceTerm, DtypeTerm, OpTerm, Term
from fxfuse.match.reasons import Failure
from fxfuse.match.search import equal_literal
from fxfuse.view import Value, View
from fxfuse.view.ops import SPECS

_BUDGET = 2_000


@dataclass
class Fit:
    """How much of a term an operand is."""

    matched: int = 0
    holes: list[Failure] = field(default_factory=list)
    choices: dict[str, str] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)

    def add(self, other: Fit) -> Fit:
        return Fit(
            self.matched + other.matched,
            [*self.holes, *other.holes],
            {**self.choices, **other.choices},
            [*self.values, *other.values],
        )

    @property
    def rank(self) -> tuple[int, int]:
        return self.matched, -len(self.holes)


class Probe:
    """Scores one pattern around one seed value."""

    def __init__(self, view: View, pattern: Pattern) -> None:
        self.view = view
        self.pattern = pattern
        self.memo: dict[tuple[int, int], Fit] = {}
        self.budget = _BUDGET

    def around(self, seed: OpTerm, value: Value) -> Fit:
        """The best fit that contains ``seed`` at ``value``, climbed as far towards the root as it goes."""
        fit = self.fit(seed, value)
        term: Term = seed
        at = value
        while term is not self.pattern.terms.root:
            parent = self.pattern.terms.parents[term][0]
            if isinstance(parent, ChoiceTerm):
                label = next(k for k, t in parent.alternatives.items() if t is term)
                fit.choices[parent.name] = label
                term = parent
                self.memo[(id(parent), id(at))] = fit
                continue
            assert isinstance(parent, OpTerm)
            readers = [r for r in self.view.readers(at) if r.op == parent.op and r.known]
            if not readers:
                if parent.op == "cast":
                    term = parent
                    continue
                others = self.view.users(at)
                found: Any = others[0] if others else "no reader but the graph's output"
                fit.holes.append(Failure("OP", parent.op, found, parent, others[0] if others else at))
                return fit
            self.memo[(id(term), id(at))] = fit
            best = max((self.fit(parent, r) for r in readers), key=lambda f: f.rank)
            at = best.values[0] if best.values else readers[0]
            fit, term = best, parent
        return fit

    def fit(self, term: Any, operand: Any) -> Fit:
        key = (id(term), id(operand))
        known = self.memo.get(key)
        if known is not None:
            return known
        self.budget -= 1
        if self.budget < 0:
            return Fit()
        made = self._fit(term, operand)
        self.memo[key] = made
        return made

    def _fit(self, term: Any, operand: Any) -> Fit:
        if isinstance(term, CaptureTerm) or not isinstance(term, Term):
            return Fit()
        if isinstance(term, ChoiceTerm):
            fits = {label: self.fit(t, operand) for label, t in term.alternatives.items()}
            label = max(fits, key=lambda k: fits[k].rank)
            best = fits[label]
            if best.matched == 0 and not best.values:
                wanted = " or ".join(dict.fromkeys(_op_of(t) for t in term.alternatives.values()))
                return Fit(0, [Failure("OP", f"{term.name}: {wanted}", operand, term, operand)])
            return Fit(best.matched, list(best.holes), {**best.choices, term.name: label}, list(best.values))
        assert isinstance(term, OpTerm)
        if term.op == "cast" and not (isinstance(operand, Value) and operand.op == "cast"):
            return self.fit(term.args["input"], operand)
        if not isinstance(operand, Value) or operand.op != term.op or not operand.known:
            return Fit(0, [Failure("OP", term.op, operand, term, operand)])
        own = int(term.op != "cast")
        straight = self._args(term, operand, {})
        if term.commutative:
            swapped = self._args(term, operand, {"input": "other", "other": "input"})
            straight = max(straight, swapped, key=lambda f: f.rank)
        return Fit(own, [], {}, [operand]).add(straight)

    def _args(self, term: OpTerm, operand: Value, rename: dict[str, str]) -> Fit:
        own = int(term.op != "cast")
        total = Fit()
        for name, wanted in term.args.items():
            given = self.view.operand(operand.args.get(rename.get(name, name)))
            if isinstance(wanted, CaptureTerm) and (is_optional(wanted.capture) or given is not None):
                continue
            if isinstance(wanted, Term):
                total = total.add(self.fit(wanted, given))
            elif not isinstance(wanted, DtypeTerm) and not equal_literal(wanted, given):
                found = given if given is not None else dict(SPECS[term.op].params).get(name)
                hole = Failure("LITERAL", f"{term.op} {name}={wanted}", f"{name}={found!r}", term, operand)
                total = total.add(Fit(-own, [hole]))
                own = 0
        return total


def _op_of(term: Term) -> str:
    while isinstance(term, ChoiceTerm):
        term = next(iter(term.alternatives.values()))
    if isinstance(term, OpTerm) and term.op == "cast":
        return _op_of(term.args["input"])
    return term.op if isinstance(term, OpTerm) else str(term)
