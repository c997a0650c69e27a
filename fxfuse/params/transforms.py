"""Pure functions of captured parameters: what a derived parameter is made of.

A `Transform` names the parameters it reads and says how to combine them. It holds no tensor, so it can be hashed,
compared, pickled, printed in a report, written into a graph (`placement="inline"`: it accepts `torch.fx` proxies),
and run on meta or fake tensors to learn a shape.

A new transform is a frozen dataclass with one method, `_apply`; `_check`, `_invert` and `shareable` where they hold.
Here are the base and the three that most kernels want; `layouts`, `scaling` and `packing` have the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Transform(ABC):
    """A pure function of named captured parameters.

    `operands` are what the function combines, in order: names of captures, or other transforms, whose results are
    then combined. Two transforms are equal when class, operands and settings are equal.
    """

    operands: tuple[str | Transform, ...]

    _takes_several: ClassVar[bool] = False  # whether it combines any number of operands

    def __post_init__(self) -> None:
        if not self.operands:
            raise ValueError(f"{self._name} was given nothing to work on; name at least one captured parameter")
        for operand in self.operands:
            if not isinstance(operand, (str, Transform)) or operand == "":
                raise ValueError(
                    f"{self._name} was given {operand!r}; valid are names of captured parameters and other transforms"
                )
        plain = [operand for operand in self.operands if isinstance(operand, str)]
        twice = sorted({name for name in plain if plain.count(name) > 1})
        if twice:
            raise ValueError(
                f"{self._name} names {', '.join(map(repr, twice))} more than once; each name may come once"
            )

    # what a subclass says about itself

    @abstractmethod
    def _apply(self, values: Sequence[Any]) -> Any:
        """The function itself, in torch operations that tensors and `torch.fx` proxies both understand."""

    def _check(self, values: Sequence[Tensor]) -> None:  # noqa: B027  (nothing to check is a valid answer)
        """Raise ValueError, naming what was found and expected, if `values` do not fit. Not called with proxies."""

    def _invert(self, result: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        """The operands' values, given the result and the shape of each operand."""
        raise ValueError(f"{self.describe()} has no inverse: {self._name} loses information")

    @property
    def shareable(self) -> bool:
        """Whether the result is one allocation in which each source is a contiguous slice, in the order of `sources`.

        If so, the sources can live inside the result (`fxfuse.params.share`) and no second copy is needed.
        """
        return False

    @property
    def inlinable(self) -> bool:
        """Whether a graph may compute it on each call at a cost worth speaking of."""
        return all(operand.inlinable for operand in self.operands if isinstance(operand, Transform))

    @property
    def placements(self) -> frozenset[str]:
        """Where the result can live: "copy" always, "share" and "inline" where the transform allows it."""
        return frozenset({"copy", *(["share"] if self.shareable else []), *(["inline"] if self.inlinable else [])})

    @property
    def _name(self) -> str:
        return type(self).__name__.lower()

    def _settings(self) -> str:
        """What `describe` prints after the operands, e.g. ", dim=1"."""
        return ""

    # what a user of a transform calls

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """The captured parameters that are read, each once, in order of first use, which is the order of a call."""
        names: dict[str, None] = {}
        for operand in self.operands:
            names.update(dict.fromkeys([operand] if isinstance(operand, str) else operand.sources))
        return tuple(names)

    def describe(self) -> str:
        """The transform as a reader writes it, e.g. "stack(gate, up)"."""
        inner = ", ".join(operand if isinstance(operand, str) else operand.describe() for operand in self.operands)
        return f"{self._name}({inner}{self._settings()})"

    def __str__(self) -> str:
        return self.describe()

    def __call__(self, *tensors: Any) -> Any:
        """The derived tensor, from one tensor (or `torch.fx` proxy) per name in `sources`, in that order.

        Raises ValueError that names the sources, what was found and what would be valid.
        """
        if len(tensors) != len(self.sources):
            raise ValueError(
                f"{self.describe()} was given {len(tensors)} tensors; it takes {len(self.sources)}, "
                f"for {', '.join(self.sources)} in this order"
            )
        return self._evaluate(dict(zip(self.sources, tensors, strict=True)))

    def _evaluate(self, named: Mapping[str, Any]) -> Any:
        values = [named[one] if isinstance(one, str) else one._evaluate(named) for one in self.operands]
        if all(isinstance(value, Tensor) for value in values):  # a proxy has no shape to check
            self._check(values)
        return self._apply(values)

    def inverse(self, tensor: Tensor, shapes: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
        """The sources, in the order of `sources`, that give `tensor`; `shapes` are their shapes, in that order.

        The tensors returned are views of `tensor` where they can be. Raises ValueError where there is no inverse.
        """
        expected = self.shape(shapes)
        if tensor.shape != expected:
            raise ValueError(
                f"the inverse of {self.describe()} was given a tensor of shape {tuple(tensor.shape)}; "
                f"sources of shapes {_text(shapes)} give {tuple(expected)}"
            )
        found: dict[str, Tensor] = {}
        self._unfold(tensor, dict(zip(self.sources, map(torch.Size, shapes), strict=True)), found)
        return tuple(found[name] for name in self.sources)

    def _unfold(self, result: Tensor, shapes: Mapping[str, torch.Size], found: dict[str, Tensor]) -> None:
        operand_shapes = [
            shapes[one] if isinstance(one, str) else one.shape([shapes[name] for name in one.sources])
            for one in self.operands
        ]
        for operand, value in zip(self.operands, self._invert(result, operand_shapes), strict=True):
            if not isinstance(operand, str):
                operand._unfold(value, shapes, found)
            elif operand in found:
                raise ValueError(f"{self.describe()} has no inverse: {operand!r} is used more than once")
            else:
                found[operand] = value

    def shape(self, shapes: Sequence[Sequence[int]]) -> torch.Size:
        """The shape of the result for sources of these shapes. Raises ValueError if they do not fit."""
        return self._on_meta(shapes, [torch.float32] * len(shapes)).shape

    def bytes(self, shapes: Sequence[Sequence[int]], dtypes: Sequence[torch.dtype]) -> int:
        """The bytes that the result takes, at most, for sources of these shapes and dtypes. Allocates nothing."""
        named = dict(zip(self.sources, self._empty(shapes, dtypes), strict=True))
        return self._bytes_of([named[one] if isinstance(one, str) else one._evaluate(named) for one in self.operands])

    def _bytes_of(self, operands: Sequence[Tensor]) -> int:
        """The bytes that the result takes for these operands, which have no values."""
        self._check(operands)
        result = self._apply(operands)
        return prod(result.shape) * result.dtype.itemsize

    def bytes_held(self, result: Tensor) -> int:
        """The bytes that a result takes which is there."""
        return result.untyped_storage().nbytes()

    def _on_meta(self, shapes: Sequence[Sequence[int]], dtypes: Sequence[torch.dtype]) -> Tensor:
        result: Tensor = self(*self._empty(shapes, dtypes))
        return result

    def _empty(self, shapes: Sequence[Sequence[int]], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
        if not len(shapes) == len(dtypes) == len(self.sources):
            raise ValueError(
                f"{self.describe()} was asked about {len(shapes)} shapes and {len(dtypes)} dtypes; "
                f"it takes {len(self.sources)} of each, for {', '.join(self.sources)} in this order"
            )
        facts = zip(shapes, dtypes, strict=True)
        return [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in facts]

    # sources that stand for several tensors

    def settle(self, captures: Mapping[str, Any]) -> tuple[Transform, list[Any]]:
        """This transform at one site, and what its sources captured there, in order.

        A source that captured a tuple stands for all its elements: `stack("weights")` of three is a stack of
        `weights[0]`, `weights[1]` and `weights[2]`. Raises ValueError where an operand takes no more than one.
        """
        several = {name: captures[name] for name in self.sources if isinstance(captures[name], tuple)}
        settled = self._spread({name: len(elements) for name, elements in several.items()}) if several else self
        return settled, [one for name in self.sources for one in several.get(name, (captures[name],))]

    def _spread(self, counts: Mapping[str, int]) -> Transform:
        operands: list[str | Transform] = []
        for operand in self.operands:
            if isinstance(operand, Transform):
                operands.append(operand._spread(counts))
            elif operand not in counts:
                operands.append(operand)
            elif not self._takes_several and counts[operand] != 1:
                raise ValueError(f"{self.describe()} takes one tensor; {operand} stands for {counts[operand]} here")
            else:
                operands += [f"{operand}[{index}]" for index in range(counts[operand])]
        return replace(self, operands=tuple(operands))

    def _operand_names(self) -> str:
        return ", ".join(one if isinstance(one, str) else one.describe() for one in self.operands)


@dataclass(frozen=True)
class Stack(Transform):
    """See `stack`."""

    dim: int = 0

    _takes_several: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.dim) is not int or self.dim < 0:
            raise ValueError(f"stack was given dim={self.dim!r}; valid is a dimension counted from 0")

    @cached_property
    def shareable(self) -> bool:
        return self.dim == 0 and all(isinstance(operand, str) for operand in self.operands)

    def _settings(self) -> str:
        return f", dim={self.dim}" if self.dim else ""

    def _check(self, values: Sequence[Tensor]) -> None:
        first, dim = values[0], self.dim
        facts: list[tuple[str, bool, list[object]]] = [
            (
                f"shapes of more than {dim} dimensions that differ in dimension {dim} only",
                self._shapes_fit(values),
                [tuple(value.shape) for value in values],
            ),
            ("one dtype", all(value.dtype == first.dtype for value in values), [value.dtype for value in values]),
            ("one device", all(value.device == first.device for value in values), [value.device for value in values]),
        ]
        for needed, holds, found in facts:
            if not holds:
                names = self._operand_names()
                raise ValueError(f"{self.describe()} needs {needed}; found {', '.join(map(str, found))} for {names}")

    def _shapes_fit(self, values: Sequence[Tensor]) -> bool:
        def others(value: Tensor) -> tuple[int, ...]:
            return (*value.shape[: self.dim], *value.shape[self.dim + 1 :])

        first = values[0]
        return all(v.ndim == first.ndim > self.dim and others(v) == others(first) for v in values)

    def _apply(self, values: Sequence[Any]) -> Any:
        return torch.cat(list(values), dim=self.dim)

    def _invert(self, result: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return torch.split(result, [shape[self.dim] for shape in shapes], dim=self.dim)


@dataclass(frozen=True)
class Cast(Transform):
    """See `cast`."""

    dtype: torch.dtype = torch.float32

    def _settings(self) -> str:
        return f", {str(self.dtype).removeprefix('torch.')}"

    def _apply(self, values: Sequence[Any]) -> Any:
        return values[0].to(self.dtype)


@dataclass(frozen=True)
class Transpose(Transform):
    """See `transpose`."""

    dims: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(type(dim) is int and dim >= 0 for dim in self.dims) or self.dims[0] == self.dims[1]:
            raise ValueError(
                f"transpose was given dimensions {self.dims}; valid are two different ones, counted from 0"
            )

    def _settings(self) -> str:
        return "" if self.dims == (0, 1) else f", {self.dims[0]}, {self.dims[1]}"

    def _check(self, values: Sequence[Tensor]) -> None:
        if values[0].ndim <= max(self.dims):
            raise ValueError(
                f"{self.describe()} needs more than {max(self.dims)} dimensions; "
                f"found shape {tuple(values[0].shape)} for {self._operand_names()}"
            )

    def _apply(self, values: Sequence[Any]) -> Any:
        return values[0].transpose(*self.dims).contiguous()

    def _invert(self, result: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return (result.transpose(*self.dims),)


def stack(*operands: str | Transform, dim: int = 0) -> Stack:
    """Tensors one after another along `dim`: for `dim=0`, (A, ...) and (B, ...) give (A + B, ...).

    The lengths along `dim` may differ; all other dimensions, dtype and device must agree, else the call raises
    ValueError. Along dimension 0 the sources can share storage with the result. The inverse splits.
    """
    return Stack(operands, dim)


def cast(operand: str | Transform, dtype: torch.dtype) -> Cast:
    """The operand in another dtype, of the same shape. No inverse: a narrower dtype rounds."""
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"cast was given {dtype!r} as dtype; valid is a torch.dtype, e.g. torch.bfloat16")
    return Cast((operand,), dtype)


def transpose(operand: str | Transform, dim0: int = 0, dim1: int = 1) -> Transpose:
    """The operand with two dimensions swapped and the memory laid out to match: (A, B) gives a contiguous (B, A).

    The inverse swaps back, as a view.
    """
    return Transpose((operand,), (dim0, dim1))


def _text(shapes: Sequence[Sequence[int]]) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)
