"""Near misses: how far a pattern got where it did not match, counting past the first difference.

The search stops at the first thing that differs. A reader wants to know what else fits, so here a mismatch is a hole
and the comparison goes on around it, outwards from the seed, choosing at every fork the side that fits best.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fxfuse.authoring.captures import is_optional
from fxfuse.authoring.terms import CaptureTerm, ChoiceTerm, DtypeTerm, ManyTerm, OpTerm, Term, TermGraph
from fxfuse.match.feasible import equal_literal
from fxfuse.match.reasons import Failure
from fxfuse.view import Value, View
from fxfuse.view.ops import SPECS

_BUDGET = 2_000
_REACH = 16


@dataclass
class Fit:
    """How much of a term an operand is."""

    terms: frozenset[Term] = frozenset()
    holes: list[Failure] = field(default_factory=list)
    choices: dict[str, str] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)

    def add(self, other: Fit) -> Fit:
        return Fit(
            self.terms | other.terms,
            [*self.holes, *other.holes],
            {**self.choices, **other.choices},
            [*self.values, *other.values],
        )

    @property
    def matched(self) -> int:
        """How many operations of the pattern were found, each once however often it is read."""
        return len(self.terms)

    @property
    def rank(self) -> tuple[int, int]:
        return self.matched, -len(self.holes)


class Probe:
    """Scores one form of a pattern around one seed value."""

    def __init__(self, view: View, form: TermGraph) -> None:
        self.view = view
        self.form = form
        self.memo: dict[tuple[int, int], Fit] = {}
        self.budget = _BUDGET

    def around(self, seed: OpTerm, value: Value) -> Fit:
        """The best fit that contains ``seed`` at ``value``, climbed as far towards the root as it goes."""
        return self._climb(seed, value, self.fit(seed, value), holes=1)

    def _climb(self, term: Term, at: Value, fit: Fit, holes: int) -> Fit:
        """``fit`` extended through the readers of ``at``, which is ``term``; past ``holes`` readers that are none."""
        self.memo[(id(term), id(at))] = fit
        parents = self.form.parents.get(term, ())
        if not parents or isinstance(parents[0], ManyTerm):
            return fit
        parent = parents[0]
        if isinstance(parent, ChoiceTerm):
            label = next(k for k, t in parent.alternatives.items() if t is term)
            chosen = Fit(fit.terms, fit.holes, {**fit.choices, parent.name: label}, fit.values)
            return self._climb(parent, at, chosen, holes)
        assert isinstance(parent, OpTerm)
        readers = [r for r in self.view.readers(at) if r.op == parent.op and r.known]
        if readers:
            reader, best = max(((r, self.fit(parent, r)) for r in readers), key=lambda pair: pair[1].rank)
            return self._climb(parent, reader, best, holes)
        if parent.op == "cast":
            return self._climb(parent, at, fit, holes)
        beyond = self._beyond(at)
        other: Any = beyond[0] if beyond else "no reader but the graph's output"
        hole = Failure("OP", parent.op, other, parent, beyond[0] if beyond else at)
        short = Fit(fit.terms, [*fit.holes, hole], fit.choices, fit.values)
        spec = SPECS.get(beyond[0].op) if beyond else None
        if holes == 0 or (spec is not None and spec.alias):  # a view stands for no computation
            return short
        above: Term = parent
        while self.form.parents.get(above):
            above = self.form.parents[above][0]
            if isinstance(above, OpTerm):
                break
        wanted = above.op if isinstance(above, OpTerm) else ""
        likely = [v for v in beyond if any(r.op == wanted for r in self.view.readers(v))]
        ends = [self._climb(parent, value, short, holes - 1) for value in likely]
        return max([short, *ends], key=lambda f: f.rank)

    def _beyond(self, at: Value) -> list[Value]:
        """What is computed from a value, nearest first: an unknown op may be spelled as a formula of many."""
        found: dict[int, Value] = {}
        pending = [at]
        for value in pending:
            for user in self.view.users(value):
                if id(user) not in found and len(found) < _REACH:
                    found[id(user)] = user
                    pending.append(user)
        return list(found.values())

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
                return Fit(frozenset(), [Failure("OP", f"{term.name}: {wanted}", operand, term, operand)])
            return Fit(best.terms, list(best.holes), {**best.choices, term.name: label}, list(best.values))
        assert isinstance(term, OpTerm)
        if term.op == "cast" and not (isinstance(operand, Value) and operand.op == "cast"):
            return self.fit(term.args["input"], operand)
        if not isinstance(operand, Value) or operand.op != term.op or not operand.known:
            return Fit(frozenset(), [Failure("OP", term.op, operand, term, operand)])
        straight = self._args(term, operand, {})
        if term.commutative:
            swapped = self._args(term, operand, {"input": "other", "other": "input"})
            straight = max(straight, swapped, key=lambda f: f.rank)
        return Fit(values=[operand]).add(straight)

    def _args(self, term: OpTerm, operand: Value, rename: dict[str, str]) -> Fit:
        """The fit of an op of the right kind with its operands; it counts only where its literals are right, too."""
        total = Fit()
        literals_fit = True
        for name, wanted in term.args.items():
            given = self.view.operand(operand.args.get(rename.get(name, name)))
            if isinstance(wanted, CaptureTerm) and (is_optional(wanted.capture) or given is not None):
                continue
            if isinstance(wanted, Term):
                total = total.add(self.fit(wanted, given))
            elif isinstance(wanted, tuple) and isinstance(given, tuple) and len(wanted) == len(given):
                for item, raw in zip(wanted, given, strict=True):
                    total = total.add(self.fit(item, self.view.operand(raw)))
            elif not isinstance(wanted, DtypeTerm) and not equal_literal(wanted, given):
                found = given if given is not None else dict(SPECS[term.op].params).get(name)
                hole = Failure("LITERAL", f"{term.op} {name}={wanted}", f"{name}={found!r}", term, operand)
                total = total.add(Fit(holes=[hole]))
                literals_fit = False
        return total.add(Fit(frozenset({term}))) if literals_fit and term.op != "cast" else total


def _op_of(term: Term) -> str:
    while isinstance(term, ChoiceTerm):
        term = next(iter(term.alternatives.values()))
    if isinstance(term, OpTerm) and term.op == "cast":
        return _op_of(term.args["input"])
    return term.op if isinstance(term, OpTerm) else str(term)
