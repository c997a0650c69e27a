"""Is the rewritten program eager's? Its values, and its aliases, writes, strides and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from bench.soundness.program import Program, operands
from fxfuse.numerics.contract import errors

BITS: dict[torch.dtype, float] = {}
"""No difference at all."""

_FP32 = 64 * 2.0**-23
LAST_PLACE = {torch.float64: 2.0**-40, torch.float32: _FP32, torch.bfloat16: _FP32, torch.float16: _FP32}
"""By dtype, what a difference in fp32's last place may grow to, as a part of the largest element. In a lower precision
it is seen only where it tips a rounding, which is rare: a rounding more or less is seen in most results."""

ROUNDED = {**LAST_PLACE, torch.bfloat16: 8 * 2.0**-8, torch.float16: 8 * 2.0**-11}
"""What it may grow to where it did tip one."""

GRADIENT = 1e-4
"""The same for gradients, which are sums in any order; where any value is of a lower precision, that of bf16."""


@dataclass
class Ran:
    """What one run did: what it returned, what its operands are now, and the gradients."""

    outputs: tuple[torch.Tensor, ...]
    operands: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor | None] = field(default_factory=dict)

    @property
    def storages(self) -> tuple[tuple[str, ...], ...]:
        """Of each output: the operands and earlier outputs that it shares storage with."""
        named = [*self.operands.items(), *((f"result {i}", o) for i, o in enumerate(self.outputs))]
        found = []
        for i, output in enumerate(self.outputs):
            before = named[: len(self.operands) + i]
            found.append(tuple(name for name, t in before if output.numel() and _storage(t) == _storage(output)))
        return tuple(found)


def run(program: Program, function: Callable[..., Any], names: Sequence[str] | None, seed: int) -> Ran:
    """One call. ``names``: the function's arguments in order, sizes among them (``s4``); None: the program's own."""
    given = operands(program, seed)
    sizes = {f"s{size}": size for o in program.operands for size in o.shape}
    torch.manual_seed(seed + 1)
    with torch.set_grad_enabled(program.grad):
        outputs = tuple(function(*(given[n] if n in given else sizes[n] for n in names or program.parameters)))
    ran = Ran(outputs, given)
    if program.grad:
        ran.gradients = _gradients(outputs, given)
    return ran


def _gradients(outputs: Sequence[torch.Tensor], given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    wanted = {n: t for n, t in given.items() if t.requires_grad and t.is_leaf}
    sources = [o for o in outputs if o.requires_grad and o.dtype.is_floating_point]
    if not wanted or not sources:
        return {}
    weights = [torch.linspace(0.5, 1.5, o.numel(), dtype=torch.float64).view(o.shape) for o in sources]
    loss = torch.stack([(o.double() * w).sum() for o, w in zip(sources, weights, strict=True)]).sum()
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return dict(zip(wanted, found, strict=True))


class _Wide(TorchFunctionMode):
    """Every cast to a floating-point dtype is one to float64: what the program would give without any rounding."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in {"float", "half", "bfloat16"} and len(args) == 1:
            return args[0].double()
        if name == "view" and len(args) == 2 and isinstance(args[1], torch.dtype):
            raise NotImplementedError("bits read as another dtype have no meaning in float64")
        swap = _wider if isinstance(args, tuple) else (lambda value: value)
        return func(*map(swap, args), **{k: swap(v) for k, v in (kwargs or {}).items()})


def _wider(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def exact(program: Program, function: Callable[..., Any], seed: int) -> tuple[torch.Tensor, ...] | None:
    """The results in float64; None where the program has none (it reads bits, or PyTorch refuses the dtypes)."""
    given = {n: t.detach().double() if t.dtype.is_floating_point else t for n, t in operands(program, seed).items()}
    torch.manual_seed(seed + 1)
    try:
        with torch.no_grad(), _Wide():
            return tuple(function(*given.values()))
    except Exception:
        return None


Allowed = Mapping[torch.dtype, float]


def differs(want: Ran, got: Ran, allowed: Allowed = BITS, truth: Sequence[torch.Tensor] | None = None) -> str | None:
    """What differs, in words, or None.

    Args:
        allowed: by dtype, the largest difference that counts as none, as a part of the largest element.
        truth: the results in float64; a result within the contract against them is no different.
    """
    if len(want.outputs) != len(got.outputs):
        return f"{len(got.outputs)} results instead of {len(want.outputs)}"
    for i, (a, b) in enumerate(zip(want.outputs, got.outputs, strict=True)):
        for what in ("dtype", "shape", "requires_grad"):
            if getattr(a, what) != getattr(b, what):
                return f"result {i}: {what} {getattr(b, what)} instead of {getattr(a, what)}"
        if _strides(a) != _strides(b):
            return f"result {i}: strides {b.stride()} instead of {a.stride()}"
    if want.storages != got.storages:
        return f"results share storage with {got.storages} instead of {want.storages}"
    for i, (a, b) in enumerate(zip(want.outputs, got.outputs, strict=True)):
        wrong = _values(a, b, allowed, truth[i] if truth is not None else None)
        if wrong:
            return f"result {i}: {wrong}"
    for name, a in want.operands.items():
        wrong = _values(a, got.operands[name], allowed)
        if wrong:
            return f"operand {name} after the call: {wrong}"
    given = [g.double().abs().nan_to_num(0, 0, 0).max() for g in want.gradients.values() if g is not None and g.numel()]
    scale = float(max(given, default=torch.tensor(0.0)))  # addends may cancel in one, and it be the smaller for it
    low = any(t.dtype in (torch.bfloat16, torch.float16) for t in (*want.outputs, *want.operands.values()))
    tolerance = dict.fromkeys(ROUNDED, ROUNDED[torch.bfloat16] if low else GRADIENT)
    for name, gradient in want.gradients.items():
        other = got.gradients.get(name)
        if (gradient is None) != (other is None):
            return f"gradient of {name}: {'none' if other is None else 'one'}, and eager says otherwise"
        if gradient is not None and other is not None:
            wrong = _values(gradient, other, tolerance, scale=scale)
            if wrong:
                return f"gradient of {name}: {wrong}"
    return None


def _values(
    want: torch.Tensor, got: torch.Tensor, allowed: Allowed, truth: torch.Tensor | None = None, scale: float = 0.0
) -> str | None:
    want, got = want.detach(), got.detach()
    same = (want == got) | (want.isnan() & got.isnan()) if want.dtype.is_floating_point else want == got
    if bool(same.all()):
        return None
    wide = want.double()
    largest = max(float(wide.abs().nan_to_num(0, 0, 0).max()), scale)
    by = float(torch.where(same, 0.0, (wide - got.double()).abs()).nan_to_num(float("inf")).max())
    if want.dtype.is_floating_point:
        if by <= allowed.get(want.dtype, 0.0) * largest:
            return None
        if truth is not None and errors(got, want, truth).within:
            return None
    return f"{int((~same).sum())} of {want.numel()} elements differ, by up to {by:.3g} of {largest:.3g}"


def _strides(tensor: torch.Tensor) -> tuple[int, ...]:
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return tuple(stride for size, stride in pairs if size != 1) if tensor.numel() else ()


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
