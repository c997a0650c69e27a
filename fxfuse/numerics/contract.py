"""The numeric contract: against float64, a fused result is at most twice as far off as eager PyTorch, plus a floor.

The error is taken in its maximum and in RMS, each relative to the exact result's. Stock Inductor is no oracle, and a
bare tolerance says nothing about a dtype: eager in the same dtype is what a user gives up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

FACTOR = 2.0
FLOOR = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 1e-3}


@dataclass(frozen=True)
class Error:
    """How far a tensor is from the exact one: largest and RMS difference, relative to the largest and RMS value."""

    max: float
    rms: float

    def __str__(self) -> str:
        return f"max {self.max:.2e}, rms {self.rms:.2e}"


@dataclass(frozen=True)
class Errors:
    """The fused and the eager error of one result, or the worst of several, and what the contract allows."""

    fused: Error
    eager: Error
    floor: float

    @property
    def allowed(self) -> Error:
        return Error(FACTOR * self.eager.max + self.floor, FACTOR * self.eager.rms + self.floor)

    @property
    def within(self) -> bool:
        """Whether the contract holds."""
        return self.fused.max <= self.allowed.max and self.fused.rms <= self.allowed.rms

    @property
    def ratio(self) -> float:
        """The part of what is allowed that is used up; above 1 the contract is broken."""
        return max(_part(self.fused.max, self.allowed.max), _part(self.fused.rms, self.allowed.rms))

    def __str__(self) -> str:
        return f"fused {self.fused}; eager {self.eager}; allowed {self.allowed}"


def errors(fused: Tensor, eager: Tensor, exact: Tensor, *, floor: float | None = None) -> Errors:
    """The errors of one result against the exact one, computed in float64.

    Places that eager itself cannot represent (it overflows where the exact value is finite) do not count. Results
    that are no floating-point numbers must be equal.

    Args:
        floor: what is allowed where eager is exact; the contract's floor for eager's dtype by default.

    Raises:
        ValueError: the shapes differ.
    """
    if not fused.shape == eager.shape == exact.shape:
        shapes = ", ".join(str(tuple(t.shape)) for t in (fused, eager, exact))
        raise ValueError(f"fused, eager and exact results must have one shape; given {shapes}.")
    if floor is None:
        floor = FLOOR.get(eager.dtype, 0.0)
    fused, eager, exact = (_wide(t) for t in (fused, eager, exact))
    counted = eager.isfinite() | ~exact.isfinite()
    return Errors(_error(fused, exact, counted), _error(eager, exact, counted), floor)


def within(fused: Tensor, eager: Tensor, exact: Tensor, *, floor: float | None = None) -> bool:
    """Whether one fused result is within the contract; see :func:`errors`."""
    return errors(fused, eager, exact, floor=floor).within


def worst(found: Iterable[Errors]) -> Errors:
    """The largest errors over several seeds, which is what the contract compares.

    Raises:
        ValueError: nothing is given.
    """
    every = list(found)
    if not every:
        raise ValueError("worst() takes the errors of at least one result.")
    fused = Error(max(e.fused.max for e in every), max(e.fused.rms for e in every))
    eager = Error(max(e.eager.max for e in every), max(e.eager.rms for e in every))
    return Errors(fused, eager, max(e.floor for e in every))


def _part(found: float, allowed: float) -> float:
    if found <= 0 or allowed == float("inf"):
        return 0.0
    return found / allowed if allowed else float("inf")


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)


def _error(result: Tensor, exact: Tensor, counted: Tensor) -> Error:
    # inf - inf is nan: equal infinities and nan for nan are no error.
    same = (result == exact) | (result.isnan() & exact.isnan())
    difference = torch.where(same | ~counted, torch.zeros_like(result), result - exact).abs()
    difference = difference.nan_to_num(nan=float("inf"), posinf=float("inf"))
    size = torch.where(exact.isfinite() & counted, exact, torch.zeros_like(exact)).abs()
    if not difference.numel():
        return Error(0.0, 0.0)
    largest, root = size.max().item(), size.square().mean().sqrt().item()
    rms = difference.square().mean().sqrt().item()
    return Error(difference.max().item() / (largest or 1.0), rms / (root or 1.0))
