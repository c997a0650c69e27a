"""Captures: what a pattern takes from the graph, declared as defaults of its reference function's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, ClassVar

import torch

from fxfuse.authoring.sizes import Dim, DimExpr, Size, dims_in
from fxfuse.errors import PatternError

SCALAR_TYPES = (float, int, bool, str, tuple)


@dataclass(frozen=True)
class Capture:
    """Base of what a parameter of a reference function may stand for."""

    scalar: ClassVar[bool] = False
    param: ClassVar[bool] = False


@dataclass(frozen=True)
class Shaped(Capture):
    """A tensor: its sizes (a leading ``...`` for any number more), the dtypes it may have, and how many there are."""

    dims: tuple[Size | EllipsisType, ...] = ()
    dtypes: tuple[torch.dtype, ...] | None = None
    optional: bool = False
    many: bool = False

    def __post_init__(self) -> None:
        for dim in self.dims:
            if isinstance(dim, bool) or not (dim is ... or isinstance(dim, Dim | DimExpr | int)):
                raise PatternError(
                    f"a capture's sizes are Dim, relations of them such as 2 * N, int, or a leading ...; "
                    f"{dim!r} is none of them."
                )

    def named_dims(self) -> Iterator[Dim]:
        for dim in self.dims:
            yield from dims_in(dim)

    def describe(self) -> str:
        sizes = f"[{', '.join('...' if d is ... else str(d) for d in self.dims)}]"
        dtypes = f" of {' or '.join(str(d).removeprefix('torch.') for d in self.dtypes)}" if self.dtypes else ""
        return sizes + dtypes + (" optional" if self.optional else "") + (" many" if self.many else "")


@dataclass(frozen=True)
class _Input(Shaped):
    """A runtime tensor."""


@dataclass(frozen=True)
class _Param(Shaped):
    """A parameter or buffer of the model."""

    param = True


@dataclass(frozen=True)
class _Scalar(Capture):
    """A number, string or tuple of ints: a literal of the graph, or (numbers) a symbolic one."""

    scalar = True

    type: type = float

    def describe(self) -> str:
        return f" {self.type.__name__}"


# The constructors are typed Any, so that a capture may be the default of a parameter annotated as a tensor.


def Input(
    *dims: Size | EllipsisType,
    dtype: torch.dtype | Iterable[torch.dtype] | None = None,
    optional: bool = False,
    many: bool = False,
) -> Any:
    """A tensor computed at run time.

    Args:
        dims: its sizes; a leading ``...`` stands for any number of dimensions. None given: any shape.
        dtype: the dtypes that it may have; any, where none is given.
        optional: binds None where the operand is absent. The reference is traced both ways.
        many: one for each sibling of :func:`fxfuse.many`.
    """
    if ... in dims[1:]:
        raise PatternError("Input takes `...` only as its first size.")
    return _Input(dims or (...,), _dtypes(dtype), optional, many)


def Param(
    *dims: Size,
    dtype: torch.dtype | Iterable[torch.dtype] | None = None,
    optional: bool = False,
    many: bool = False,
) -> Any:
    """A parameter or buffer of shape ``dims``; the other arguments are those of :func:`Input`."""
    if ... in dims:
        raise PatternError("Param takes a fixed number of sizes; `...` is for Input.")
    return _Param(dims, _dtypes(dtype), optional, many)


def Scalar(type: type = float) -> Any:
    """A wildcard for one argument: any value of this type. Literals in a reference match exactly.

    Args:
        type: float (ints, too), int, bool, str (``approximate=``), or tuple (sizes of ints).
    """
    if type not in SCALAR_TYPES:
        raise PatternError(f"Scalar takes one of {', '.join(t.__name__ for t in SCALAR_TYPES)}; given {type!r}.")
    return _Scalar(type)


def _dtypes(given: Any) -> tuple[torch.dtype, ...] | None:
    if given is None:
        return None
    dtypes = (given,) if isinstance(given, torch.dtype) else tuple(given)
    if not dtypes or not all(isinstance(d, torch.dtype) for d in dtypes):
        raise PatternError(f"dtype is a torch.dtype or several; given {given!r}.")
    return dtypes


def is_param(capture: Capture) -> bool:
    return capture.param


def is_input(capture: Capture) -> bool:
    return isinstance(capture, _Input)


def is_scalar(capture: Capture) -> bool:
    return capture.scalar


def is_optional(capture: Capture) -> bool:
    return isinstance(capture, Shaped) and capture.optional


def is_many(capture: Capture) -> bool:
    return isinstance(capture, Shaped) and capture.many
