"""A model's results in float64, and how far others are from them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxfuse.numerics.contract import Errors, errors

NARROW = (torch.float32, torch.bfloat16, torch.float16)


class Widened(TorchFunctionMode):
    """Inside it no operation rounds to less than float64: casts to a narrower dtype are casts to float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in {"float", "half", "bfloat16"} and args and isinstance(args[0], Tensor):
            return args[0].double()
        args = tuple(_wide(a) for a in args)
        return func(*args, **{k: _wide(v) for k, v in (kwargs or {}).items()})


def widened(model: nn.Module) -> nn.Module:
    """A float64 copy of the model, its experts one after the other: grouped products take no float64."""
    wide = copy.deepcopy(model).double()
    if hasattr(wide, "set_experts_implementation"):
        wide.set_experts_implementation("eager")
    return wide


def exactly(wide: nn.Module, call: Callable[[nn.Module], Any]) -> Any:
    """What ``call`` gives for a float64 model when nothing in it rounds to less."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Widened():
            return call(wide)
    finally:
        torch.set_default_dtype(before)


def compare(fused: Sequence[Tensor], eager: Sequence[Tensor], exact: Sequence[Tensor]) -> Errors:
    """The errors of several results as one: each is scaled by its exact RMS, so that small ones count, too."""
    scales = [1.0 / (float(e.double().square().mean().sqrt()) or 1.0) for e in exact]
    floor = {torch.float32: 1e-6, torch.float64: 1e-12}.get(eager[0].dtype, 1e-3)
    both = [torch.cat([t.detach().double().flatten() * s for t, s in zip(ts, scales, strict=True)])
            for ts in (fused, eager, exact)]  # fmt: skip
    return errors(*both, floor=floor)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Each parameter's gradient, where it has one."""
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def _wide(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in NARROW else value
