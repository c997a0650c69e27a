"""`Feasible`: whether an operand could be a term at all, whatever else is bound. A quick, memoised look ahead.

It leaves out what depends on other parts of a match (equal operands, sizes, dtypes, which alternative was chosen), so
"no" is certain and "yes" is not. The search asks it which operand orders are worth trying, and when to give up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from fxfuse.authoring.captures import is_optional
from fxfuse.authoring.keys import has_like_operands
from fxfuse.authoring.terms import CaptureTerm, ChoiceTerm, DtypeTerm, OpTerm, Term, TermGraph
from fxfuse.view import LeafKind, Value, View
from fxfuse.view.aten.numbers import is_number_in_tensor
from fxfuse.view.ops import SPECS

SWAPPED = {"input": "other", "other": "input"}
"""The operands of a commutative op, in the other order."""


class Feasible:
    """The look ahead for one form of a pattern in one view."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._known: dict[tuple[int, int], bool] = {}
        self._orders: dict[tuple[int, int], tuple[bool, bool]] = {}
        self._alive: list[Value] = []  # ids in these stay valid while their values live
        self._symmetric: dict[OpTerm, bool] = {}

    def __call__(self, term: Any, operand: Any) -> bool:
        """Whether ``operand`` (resolved) could be ``term``, which is a term, a literal or a tuple of these."""
        kind = type(term)
        if kind is CaptureTerm:
            return _capture_fits(term, operand)
        if kind is not OpTerm and kind is not ChoiceTerm:
            return self._literal(term, operand)
        if type(operand) is not Value:
            return False
        key = (id(term), id(operand))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._fits(term, operand)
            self._alive.append(operand)
        return known

    def orders(self, term: OpTerm, operand: Value) -> tuple[bool, bool]:
        """Whether a commutative op could match with its operands as they stand, and with both swapped."""
        key = (id(term), id(operand))
        known = self._orders.get(key)
        if known is None:
            known = self._orders[key] = self._args_fit(term, operand, {}), self._args_fit(term, operand, SWAPPED)
            self._alive.append(operand)
        return known

    def symmetric(self, form: TermGraph, term: OpTerm) -> bool:
        """Whether the order of a commutative op's operands says nothing, since they are alike in the pattern."""
        if term not in self._symmetric:
            self._symmetric[term] = has_like_operands(form, term)
        return self._symmetric[term]

    def _fits(self, term: Term, operand: Value) -> bool:
        if isinstance(term, ChoiceTerm):
            return any(self(alternative, operand) for alternative in term.alternatives.values())
        assert isinstance(term, OpTerm)
        if term.op == "cast":
            source = term.args["input"]
            below = operand.op == "cast" and operand.known and self(source, self.view.operand(operand.args["input"]))
            return below or self(source, operand)
        if operand.op != term.op or not operand.known or any(name not in term.args for name in operand.args):
            return False
        if term.commutative:
            return any(self.orders(term, operand))
        return self._args_fit(term, operand, {})

    def _args_fit(self, term: OpTerm, operand: Value, renamed: Mapping[str, str]) -> bool:
        given, resolve = operand.args, self.view.operand
        for name, wanted in term.args.items():
            found = resolve(given.get(renamed.get(name, name)))
            if type(wanted) is CaptureTerm:
                if found is None and wanted.capture.scalar:
                    found = SPECS[term.op].defaults.get(name)
                if not _capture_fits(wanted, found):
                    return False
            elif not self(wanted, found):
                return False
        return True

    def _literal(self, wanted: Any, given: Any) -> bool:
        if isinstance(wanted, DtypeTerm):
            return True
        if isinstance(wanted, tuple) and isinstance(given, tuple) and len(wanted) == len(given):
            return all(self(w, self.view.operand(g)) for w, g in zip(wanted, given, strict=True))
        return equal_literal(wanted, given)


def _capture_fits(term: CaptureTerm, operand: Any) -> bool:
    capture: Any = term.capture
    if capture.scalar:
        return is_a_scalar(operand, capture.type)
    if operand is None:
        return is_optional(capture)
    if type(operand) is not Value or operand.owner is not None:
        return False
    return not capture.param or not_a_parameter(operand) is None


def equal_literal(wanted: Any, given: Any) -> bool:
    """Literals are exact; ``2`` and ``2.0`` are one number, ``True`` and ``1``, ``0.0`` and ``-0.0`` are not."""
    if isinstance(wanted, bool) or isinstance(given, bool):
        return wanted is given
    if isinstance(wanted, Value) or isinstance(given, Value):
        return False
    if isinstance(wanted, float) and isinstance(given, float) and wanted == 0:
        return given == 0 and math.copysign(1, wanted) == math.copysign(1, given)
    return bool(wanted == given)


def is_a_scalar(operand: Any, kind: type) -> bool:
    """Whether an operand is a number (or string, or tuple of ints) of this type; symbols of the graph are numbers."""
    if isinstance(operand, bool):
        return kind is bool
    if isinstance(operand, int | float):
        return kind is float or (kind is int and isinstance(operand, int))
    if isinstance(operand, str):
        return kind is str
    if isinstance(operand, tuple):
        return kind is tuple and all(isinstance(item, int) and not isinstance(item, bool) for item in operand)
    if isinstance(operand, Value):  # a number that differs from call to call: a symbol of the graph
        example = operand.node.meta.get("example_value", operand.node.meta.get("val"))
        wanted = {float: torch.SymFloat, int: torch.SymInt}.get(kind)
        return (wanted is not None and isinstance(example, wanted)) or (kind is float and is_number_in_tensor(operand))
    return False


def not_a_parameter(value: Value) -> str | None:
    """What stands where a parameter must be, or None where a plain one does."""
    if value.leaf is None:
        return f"{value.op} ({value.node.name}), computed in the graph"
    if value.leaf.kind not in (LeafKind.PARAMETER, LeafKind.BUFFER, LeafKind.UNTOLD):
        return f"the {value.leaf.kind.value} {value.leaf.path or value.node.name}"
    meta = value.meta
    if isinstance(meta, torch.Tensor) and torch.utils._python_dispatch.is_traceable_wrapper_subclass(meta):
        return f"{value.leaf.path}, a {type(meta).__name__}"
    return None
