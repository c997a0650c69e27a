"""Transforms that change where the values of a parameter lie, and not what they are: chunk, permute, pad, experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fxfuse.params.transforms import Transform


@dataclass(frozen=True)
class Chunk(Transform):
    """See `chunk`."""

    index: int = 0
    chunks: int = 2
    dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(_counts(n) for n in (self.index, self.chunks, self.dim)) or self.index >= self.chunks:
            raise ValueError(
                f"chunk was given index={self.index!r}, chunks={self.chunks!r}, dim={self.dim!r}; valid are an index "
                "below the number of chunks, and a dimension counted from 0"
            )

    def _settings(self) -> str:
        return f", {self.index}, {self.chunks}" + (f", dim={self.dim}" if self.dim else "")

    def _check(self, values: Sequence[Tensor]) -> None:
        shape = tuple(values[0].shape)
        if len(shape) <= self.dim or shape[self.dim] % self.chunks:
            raise ValueError(
                f"{self.describe()} needs a dimension {self.dim} that {self.chunks} divides; "
                f"found shape {shape} for {self._operand_names()}"
            )

    def _apply(self, values: Sequence[Any]) -> Any:
        return torch.chunk(values[0], self.chunks, self.dim)[self.index].contiguous()


@dataclass(frozen=True)
class Permute(Transform):
    """See `permute`."""

    dims: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(map(_counts, self.dims)) or sorted(self.dims) != list(range(len(self.dims))):
            raise ValueError(f"permute was given dimensions {self.dims}; valid is each of 0, 1, ... once")

    def _settings(self) -> str:
        return "".join(f", {dim}" for dim in self.dims)

    def _check(self, values: Sequence[Tensor]) -> None:
        if values[0].ndim != len(self.dims):
            raise ValueError(
                f"{self.describe()} needs {len(self.dims)} dimensions; "
                f"found shape {tuple(values[0].shape)} for {self._operand_names()}"
            )

    def _apply(self, values: Sequence[Any]) -> Any:
        return torch.permute(values[0], self.dims).contiguous()

    def _invert(self, result: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return (result.permute([self.dims.index(dim) for dim in range(len(self.dims))]),)


@dataclass(frozen=True)
class Pad(Transform):
    """See `pad`."""

    multiple: int = 1
    dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _counts(self.multiple) or self.multiple < 1 or not _counts(self.dim):
            raise ValueError(
                f"pad was given multiple={self.multiple!r}, dim={self.dim!r}; valid are a multiple of at least 1, and "
                "a dimension counted from 0"
            )

    def _settings(self) -> str:
        return f", {self.multiple}" + (f", dim={self.dim}" if self.dim else "")

    def _check(self, values: Sequence[Tensor]) -> None:
        if values[0].ndim <= self.dim:
            raise ValueError(
                f"{self.describe()} needs more than {self.dim} dimensions; "
                f"found shape {tuple(values[0].shape)} for {self._operand_names()}"
            )

    def _apply(self, values: Sequence[Any]) -> Any:
        (value,) = values
        missing = -value.shape[self.dim] % self.multiple
        last = torch.transpose(value, self.dim, -1)  # a proxy does not know how many dimensions it has
        return torch.transpose(F.pad(last, [0, missing]), self.dim, -1).contiguous()

    def _invert(self, result: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return (result.narrow(self.dim, 0, shapes[0][self.dim]),)


@dataclass(frozen=True)
class Experts(Transform):
    """See `experts`."""

    _takes_several: ClassVar[bool] = True

    @cached_property
    def shareable(self) -> bool:
        return all(isinstance(operand, str) for operand in self.operands)

    def _check(self, values: Sequence[Tensor]) -> None:
        for what in ("shape", "dtype", "device"):
            found = [getattr(value, what) for value in values]
            if any(one != found[0] for one in found):
                words = ", ".join(str(tuple(one) if what == "shape" else one) for one in found)
                raise ValueError(f"{self.describe()} needs one {what}; found {words} for {self._operand_names()}")

    def _apply(self, values: Sequence[Any]) -> Any:
        return torch.stack(list(values))

    def _invert(self, result: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return result.unbind()


def chunk(operand: str | Transform, index: int, chunks: int = 2, dim: int = 0) -> Chunk:
    """One of several equal parts: for `dim=0`, (n * A, ...) gives (A, ...). `chunk("gate_up", 1)` is up.

    The call raises ValueError where the parts would not be equal. No inverse: the other parts are gone.
    """
    return Chunk((operand,), index, chunks, dim)


def permute(operand: str | Transform, *dims: int) -> Permute:
    """The dimensions in another order, and the memory laid out to match: (A, B, C) by 2, 0, 1 gives (C, A, B).

    The inverse permutes back, as a view.
    """
    return Permute((operand,), dims)


def pad(operand: str | Transform, multiple: int, dim: int = 0) -> Pad:
    """Zeros behind a dimension, up to a multiple: `pad("w", 64)` of (A, B) is (A rounded up to 64, B).

    The inverse cuts them off, as a view.
    """
    return Pad((operand,), multiple, dim)


def experts(*operands: str | Transform) -> Experts:
    """Tensors of one shape along a new first dimension: E tensors (A, B) give (E, A, B), as grouped GEMMs want them.

    Plain sources can share storage with the result. The inverse takes them apart, as views.
    """
    return Experts(operands)


def _counts(value: object) -> bool:
    return type(value) is int and value >= 0
