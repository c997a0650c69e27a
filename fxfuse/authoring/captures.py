"""Captures: what a pattern takes from the graph, declared as defaults of its reference function's parameters."""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType
from typing import Any

from fxfuse.errors import PatternError


@dataclass(frozen=True)
class Dim:
    """A named size. The same Dim in two captures of a pattern means the same size at a site."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Capture:
    """Base of what a parameter of a reference function may stand for."""

    def __post_init__(self) -> None:
        for dim in getattr(self, "dims", ()):
            if dim is not ... and not isinstance(dim, Dim | int):
                raise PatternError(f"a capture's sizes are Dim, int or a leading ...; {dim!r} is none of them.")


@dataclass(frozen=True)
class Shaped(Capture):
    dims: tuple[Dim | int | EllipsisType, ...] = ()

    def describe(self) -> str:
        return f"[{', '.join('...' if d is ... else str(d) for d in self.dims)}]"


@dataclass(frozen=True)
class _Input(Shaped):
    """A runtime tensor."""


@dataclass(frozen=True)
class _Param(Shaped):
    """A parameter or buffer of the model."""

    optional: bool = False


@dataclass(frozen=True)
class _Scalar(Capture):
    """A number: a literal of the graph, or a symbolic one."""

    type: type = float
    dims: tuple[()] = ()

    def describe(self) -> str:
        return f" {self.type.__name__}"


# The constructors are typed Any, so that a capture may be the default of a parameter annotated as a tensor.


def Input(*dims: Dim | int | EllipsisType) -> Any:
    """A tensor computed at run time, of shape ``dims``; a leading ``...`` stands for any number of dimensions."""
    if ... in dims[1:]:
        raise PatternError("Input takes `...` only as its first size.")
    return _Input(dims)


def Param(*dims: Dim | int, optional: bool = False) -> Any:
    """A parameter or buffer of shape ``dims``; ``optional`` ones bind None where the operand is absent."""
    if ... in dims:
        raise PatternError("Param takes a fixed number of sizes; `...` is for Input.")
    return _Param(dims, optional)


def Scalar(type: type = float) -> Any:
    """A number of this type, any value. A wildcard is always written: literals in a reference match exactly."""
    if type not in (float, int, bool):
        raise PatternError(f"Scalar takes float, int or bool; given {type!r}.")
    return _Scalar(type)


def is_param(capture: Capture) -> bool:
    return isinstance(capture, _Param)


def is_input(capture: Capture) -> bool:
    return isinstance(capture, _Input)


def is_scalar(capture: Capture) -> bool:
    return isinstance(capture, _Scalar)


def is_optional(capture: Capture) -> bool:
    return isinstance(capture, _Param) and capture.optional
