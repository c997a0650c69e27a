"""Sizes: named dimensions of captures and the relations between them, such as ``2 * N``."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fxfuse.compat import statically_known_true
from fxfuse.errors import PatternError

_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv}


class _Arithmetic:
    """``+ - * //`` with ints and other sizes give a :class:`DimExpr`."""

    def __add__(self, other: Any) -> DimExpr:
        return _expr("+", self, other)

    def __radd__(self, other: Any) -> DimExpr:
        return _expr("+", other, self)

    def __sub__(self, other: Any) -> DimExpr:
        return _expr("-", self, other)

    def __rsub__(self, other: Any) -> DimExpr:
        return _expr("-", other, self)

    def __mul__(self, other: Any) -> DimExpr:
        return _expr("*", self, other)

    def __rmul__(self, other: Any) -> DimExpr:
        return _expr("*", other, self)

    def __floordiv__(self, other: Any) -> DimExpr:
        return _expr("//", self, other)


@dataclass(frozen=True)
class Dim(_Arithmetic):
    """A named size. The same Dim in two captures of a pattern means the same size at a site."""

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise PatternError(f"Dim takes a name; given {self.name!r}.")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class DimExpr(_Arithmetic):
    """A relation of sizes, e.g. ``2 * N``: holds where the graph's sizes fulfil it, symbolic ones included."""

    op: str
    left: Size
    right: Size

    def __str__(self) -> str:
        def side(size: Size) -> str:
            return f"({size})" if isinstance(size, DimExpr) else str(size)

        return f"{side(self.left)} {self.op} {side(self.right)}"


Size = Dim | DimExpr | int


def _expr(op: str, left: Any, right: Any) -> DimExpr:
    for side in (left, right):
        if isinstance(side, bool) or not isinstance(side, Dim | DimExpr | int):
            raise PatternError(f"sizes are combined with Dim, int and their sums and products; given {side!r}.")
    return DimExpr(op, left, right)


def dims_in(size: Any) -> Iterator[Dim]:
    """The named dimensions of a size."""
    if isinstance(size, Dim):
        yield size
    elif isinstance(size, DimExpr):
        yield from dims_in(size.left)
        yield from dims_in(size.right)


def evaluate(size: Size, known: Mapping[Dim, Any]) -> Any:
    """The size under these values of its dimensions; None where one of them is not known. Adds no guard."""
    if isinstance(size, Dim):
        return known.get(size)
    if not isinstance(size, DimExpr):
        return size
    left, right = evaluate(size.left, known), evaluate(size.right, known)
    if left is None or right is None or (size.op == "//" and isinstance(right, int) and right == 0):
        return None
    return _OPERATORS[size.op](left, right)


def solve(size: Size, value: Any, known: Mapping[Dim, Any]) -> tuple[Dim, Any] | None:
    """The one unknown dimension of ``size`` and what it must be for the size to be ``value``, where that is certain."""
    if isinstance(size, Dim):
        return None if size in known else (size, value)
    if not isinstance(size, DimExpr):
        return None
    left, right = evaluate(size.left, known), evaluate(size.right, known)
    if (left is None) == (right is None):
        return None
    if size.op == "+":
        return solve(size.left if left is None else size.right, value - (right if left is None else left), known)
    if size.op == "-":
        return solve(size.left, value + right, known) if left is None else solve(size.right, left - value, known)
    factor = right if left is None else left
    if size.op == "*" and isinstance(factor, int) and factor > 0 and statically_known_true(value % factor == 0):
        return solve(size.left if left is None else size.right, value // factor, known)
    return None
