"""Transforms that multiply a parameter: by a number, by a vector along its rows, or by the scale of the norm before it.

The product is formed in fp32 (in float64 for a float64 weight) and rounded once, to the weight's own dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxfuse.params.transforms import Transform


def _wide(dtype: Any) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def _require_floats(transform: Transform, values: Sequence[Tensor]) -> None:
    found = [value.dtype for value in values]
    if not all(dtype.is_floating_point and dtype.itemsize > 1 for dtype in found):
        names = transform._operand_names()
        raise ValueError(
            f"{transform.describe()} needs float16, bfloat16, float32 or float64; "
            f"found {', '.join(map(str, found))} for {names}"
        )
    devices = [value.device for value in values]
    if len(set(devices)) > 1:
        names = transform._operand_names()
        raise ValueError(f"{transform.describe()} needs one device; found {', '.join(map(str, devices))} for {names}")


@dataclass(frozen=True)
class Scale(Transform):
    """See `scale`."""

    by: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by is not None and (type(self.by) not in (int, float) or not math.isfinite(self.by)):
            raise ValueError(f"scale was given {self.by!r}; valid is a finite number, or the name of a vector")

    def _settings(self) -> str:
        return "" if self.by is None else f", {self.by!r}"

    def _check(self, values: Sequence[Tensor]) -> None:
        _require_floats(self, values)
        shapes = [tuple(value.shape) for value in values]
        if self.by is None and (len(shapes[1]) != 1 or len(shapes[0]) < 1 or shapes[0][0] != shapes[1][0]):
            raise ValueError(
                f"{self.describe()} needs a vector of one number per row; found {shapes[0]} and {shapes[1]} "
                f"for {self._operand_names()}"
            )

    def _apply(self, values: Sequence[Any]) -> Any:
        value, wide = values[0], _wide(values[0].dtype)
        if self.by is not None:
            return (value.to(wide) * self.by).to(value.dtype)
        last = torch.transpose(value.to(wide), 0, -1)  # a proxy does not know how many dimensions it has
        return torch.transpose(last * values[1].to(wide), 0, -1).contiguous().to(value.dtype)


@dataclass(frozen=True)
class Fold(Transform):
    """See `fold`."""

    offset: bool = False

    def _settings(self) -> str:
        return ", offset=True" if self.offset else ""

    def _check(self, values: Sequence[Tensor]) -> None:
        _require_floats(self, values)
        weight, norm = (tuple(value.shape) for value in values)
        if len(norm) != 1 or len(weight) < 2 or weight[-1] != norm[0]:
            raise ValueError(
                f"{self.describe()} needs a weight (..., out, in) and a scale (in,); found {weight} and {norm} "
                f"for {self._operand_names()}"
            )

    def _apply(self, values: Sequence[Any]) -> Any:
        weight, norm = values
        wide = _wide(weight.dtype)
        by = norm.to(wide) + 1.0 if self.offset else norm.to(wide)
        return (weight.to(wide) * by).to(weight.dtype)


def scale(operand: str | Transform, by: float | str | Transform) -> Scale:
    """The operand times a number, of the same shape; or, by a vector (A,), each row of (A, ...) times its own number.

    No inverse: the product is rounded.
    """
    return Scale((operand, by)) if isinstance(by, str | Transform) else Scale((operand,), by)


def fold(weight: str | Transform, norm: str | Transform, *, offset: bool = False) -> Fold:
    """The scale (in,) of the norm before a linear, put into the input side of its weight (out, in): the same shape.

    Then `linear(h, fold(w, s))` is `linear(h * s, w)` but for rounding. `offset` folds 1 + scale, as Gemma has it.
    No inverse: the product is rounded.
    """
    if type(offset) is not bool:
        raise ValueError(f"fold was given offset={offset!r}; valid are True and False")
    return Fold((weight, norm), offset)
