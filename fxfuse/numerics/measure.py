"""The verdict on one site: fused and eager results against the exact ones, as numbers and as a sentence."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fxfuse.errors import first_line
from fxfuse.numerics.contract import Error, Errors, errors, worst
from fxfuse.numerics.exact import NotMeasured
from fxfuse.numerics.isolate import Isolated
from fxfuse.numerics.state import random_state
from fxfuse.numerics.ulps import added, histogram
from fxfuse.report import Numbers

SENSIBLE = 0.25
"""Where eager itself is further off than this in RMS, twice its error would allow nearly anything."""


class KernelError(Exception):
    """A kernel that fails, or whose results are of another form than the site's."""


@dataclass(frozen=True)
class Measured:
    """The errors of one result of a site; ``largest`` is the fused one's, absolute; ``means`` fused and eager."""

    result: int
    errors: Errors
    largest: float
    means: tuple[float, float] = (0.0, 0.0)
    ulps: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """``problem`` says why a site is not to be trusted: out of bounds, failing, or not measured. None: it holds."""

    numbers: Numbers | None = None
    problem: str | None = None


def measure(site: Isolated, values: Sequence[Any], eager: Sequence[Any], before: Sequence[Any]) -> list[Measured]:
    """Run the kernel and the exact function, and compare them, result by result.

    Args:
        values: the inputs as they are where the kernel would run.
        eager: the results that the site itself gave.
        before: the inputs as they were when the site read them.

    Raises:
        NotMeasured: float64 says nothing about this site.
        KernelError: the kernel does not give what the site gives, whatever the values.
    """
    with torch.no_grad(), random_state():
        exact = site.exact(before)
        try:
            fused = site.fused([_plain(v) for v in values])
        except Exception as error:
            raise KernelError(f"it fails: {first_line(error)}") from error
        return [_compare(i, *results) for i, results in enumerate(zip(fused, eager, exact, strict=True))]


def pooled(found: Sequence[Measured]) -> list[Measured]:
    """One entry for each result, with the worst of several inputs, fused and eager each for itself."""
    results = sorted({m.result for m in found})
    columns = [[m for m in found if m.result == result] for result in results]
    return [
        Measured(
            c[0].result,
            worst(m.errors for m in c),
            max(m.largest for m in c),
            (max(m.means[0] for m in c), max(m.means[1] for m in c)),
            added(m.ulps for m in c),
        )
        for c in columns
    ]


def judge(found: Sequence[Measured], kernel: str, inputs: str, tol: float | None = None) -> Verdict:
    """The verdict, by the worst of all that was measured.

    Args:
        inputs: what the site was run on, in words.
        tol: the error that is allowed, in maximum and in RMS, in place of the contract's.
    """
    eager = max(m.errors.eager.rms for m in found)
    if tol is None and eager > SENSIBLE:
        return not_measured(f"eager itself is off by rms {eager:.1e}, and twice that would allow nearly anything")
    worst_one = max(found, key=lambda m: _ratio(m.errors, tol))
    fused, of_eager = worst_one.errors.fused, worst_one.errors.eager
    allowed = worst_one.errors.allowed if tol is None else Error(tol, tol)
    within = fused.max <= allowed.max and fused.rms <= allowed.rms
    numbers = Numbers(
        inputs=inputs,
        result=worst_one.result,
        fused_abs=_finite(worst_one.largest),
        fused_max=_finite(fused.max),
        fused_rms=_finite(fused.rms),
        eager_max=_finite(of_eager.max),
        eager_rms=_finite(of_eager.rms),
        allowed_max=_finite(allowed.max),
        allowed_rms=_finite(allowed.rms),
        within=within,
        fused_mean=_finite(worst_one.means[0]),
        eager_mean=_finite(worst_one.means[1]),
        nearer="equal" if fused.rms == of_eager.rms else "fused" if fused.rms < of_eager.rms else "eager",
        ulps=added(m.ulps for m in found if m.result == worst_one.result),
    )
    results = 1 + max(m.result for m in found)
    where = f", in result {1 + worst_one.result} of {results}" if results > 1 else ""
    return Verdict(numbers, None if within else f"kernel {kernel} is off from float64 by {numbers}{where}")


def not_measured(why: str) -> Verdict:
    return Verdict(problem=f"not measured: {why}")


def broken(kernel: str, error: KernelError) -> Verdict:
    return Verdict(problem=f"kernel {kernel}: {error}")


def _compare(result: int, fused: Tensor, eager: Tensor, exact: Tensor) -> Measured:
    if (fused.dtype, fused.shape, fused.device) != (eager.dtype, eager.shape, eager.device):
        given, wanted = (f"{t.dtype} {tuple(t.shape)} on {t.device}" for t in (fused, eager))
        raise KernelError(f"it gives {given}; the site gives {wanted}")
    if not (eager.is_floating_point() or eager.is_complex()):
        exact = eager  # equality is asked for: in float64 another index may rightly be the greatest
    elif not (eager.isfinite() & exact.isfinite() & (exact != 0)).any():
        raise NotMeasured("the exact result is zero or not finite everywhere, so that no error would show")
    difference = (fused.to(exact.dtype) - exact).abs() if exact.dtype != torch.bool else (fused != exact)
    largest = difference.double().nan_to_num(0.0).max().item() if difference.numel() else 0.0
    means = (_mean(fused, exact), _mean(eager, exact))
    return Measured(result, errors(fused, eager, exact), largest, means, histogram(fused, exact))


def _mean(result: Tensor, exact: Tensor) -> float:
    """The mean error relative to the mean magnitude, over what is finite in both."""
    if not (exact.is_floating_point() and result.is_floating_point()):
        return 0.0
    result = result.double()
    counted = result.isfinite() & exact.isfinite()
    size = exact[counted].abs().mean().item() if counted.any() else 0.0
    return (result[counted] - exact[counted]).abs().mean().item() / size if size else 0.0


def _ratio(found: Errors, tol: float | None) -> float:
    if tol is None:
        return found.ratio
    error = max(found.fused.max, found.fused.rms)
    return error / tol if tol else error


def _finite(number: float) -> float:
    """JSON has no infinity."""
    return min(number, sys.float_info.max)


def _plain(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
