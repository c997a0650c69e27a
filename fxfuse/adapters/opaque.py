"""An op of a function that nothing may look into: foreign Triton launches, C++ bindings, Python that reads values.

The function sees real tensors when the compiled graph runs, and the compiler sees one op. Its result is handed on
contiguous, in memory of its own. Its gradient, where it has one, is what autograd makes of the function itself, run
once more on copies: some libraries write their gradients over what they were given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fxfuse.compat import autograd_inside_op
from fxfuse.fingerprint import fingerprint

NAMESPACE = "fxfuse_adapters"

_KNOWN: dict[str, tuple[object, Any]] = {}


def opaque(
    name: str,
    function: Callable[..., Any],
    schema: Mapping[str, str],
    *,
    key: object,
    like: str | None = None,
    differentiable: bool = False,
) -> Callable[..., Tensor]:
    """A custom op that runs ``function``, which is called by position and gives one tensor.

    Args:
        name: what the op is called, with a digest of ``key`` behind it.
        schema: operand -> its type in a schema: ``Tensor``, ``Tensor?``, ``float``, ``int``, ``bool`` or ``str``.
        key: what decides what the function does: functions of one key are one op.
        like: the operand whose shape, dtype and device the result has; by default the function itself is run on fake
            tensors to tell.
        differentiable: whether autograd can differentiate the function.
    """
    full = f"{NAMESPACE}::{name}_{hashlib.sha256(fingerprint(key).encode()).hexdigest()[:12]}"
    while full in _KNOWN:
        if _KNOWN[full][0] == key:
            return _KNOWN[full][1]
        full += "_"
    place = list(schema).index(like) if like is not None else None

    def run(*operands: Any) -> Tensor:
        before = [_version(operand) for operand in operands]
        with torch.no_grad():
            result = function(*operands)
        _require(result, operands[place] if place is not None else result, full)
        for operand, one, version in zip(schema, operands, before, strict=True):
            if _version(one) != version:
                raise RuntimeError(f"{full} writes to its operand {operand}; only what writes nothing can be adapted.")
        own = result.contiguous()
        memory = [o.untyped_storage().data_ptr() for o in operands if isinstance(o, Tensor)]
        return own.clone() if own.untyped_storage().data_ptr() in memory else own

    def fake(*operands: Any) -> Tensor:
        with torch.no_grad():
            result = operands[place] if place is not None else function(*operands)
        _require(result, result, full)
        return torch.empty_like(result, memory_format=torch.contiguous_format)

    made = torch.library.custom_op(full, run, mutates_args=(), schema=_signature(schema, "Tensor"))
    made.register_fake(fake)
    if differentiable:
        _add_backward(made, full, function, schema)
    _KNOWN[full] = key, made
    return made


def _signature(schema: Mapping[str, str], result: str) -> str:
    return f"({', '.join(f'{kind} {name}' for name, kind in schema.items())}) -> {result}"


def _version(operand: Any) -> int | None:
    return operand._version if isinstance(operand, Tensor) and not operand.is_inference() else None


def _require(result: Any, expected: Any, name: str) -> None:
    if not isinstance(result, Tensor):
        raise TypeError(f"{name} returned {type(result).__name__}, not one tensor.")
    if result.shape != expected.shape or result.dtype != expected.dtype or result.device != expected.device:
        raise RuntimeError(
            f"{name} returned {result.dtype} {tuple(result.shape)} on {result.device}; the graph was compiled for "
            f"{expected.dtype} {tuple(expected.shape)} on {expected.device}."
        )


def _add_backward(made: Any, name: str, function: Callable[..., Any], schema: Mapping[str, str]) -> None:
    tensors = [i for i, kind in enumerate(schema.values()) if kind.startswith("Tensor")]

    def backward(grad: Tensor, *operands: Any) -> list[Tensor]:
        given = list(operands)
        present = [i for i in tensors if given[i] is not None]
        for i in present:
            given[i] = given[i].detach().clone()
            given[i].requires_grad_(given[i].is_floating_point())
        leaves = [i for i in present if given[i].requires_grad]
        with autograd_inside_op():
            result = function(*given)
            found = torch.autograd.grad(result, [given[i] for i in leaves], grad.clone(), allow_unused=True)
        grads = dict(zip(leaves, found, strict=True))
        return [_own(grads.get(i), given[i].detach()) for i in present]

    def fake(grad: Tensor, *operands: Any) -> list[Tensor]:
        return [torch.empty_like(operands[i]) for i in tensors if operands[i] is not None]

    signature = _signature({"grad": "Tensor", **schema}, "Tensor[]")
    formula = torch.library.custom_op(f"{name}_backward", backward, mutates_args=(), schema=signature)
    formula.register_fake(fake)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*(inputs[i] for i in tensors))
        ctx.rest = [None if i in tensors else value for i, value in enumerate(inputs)]

    def differentiate(ctx: Any, grad: Tensor) -> Any:
        operands = list(ctx.rest)
        for i, saved in zip(tensors, ctx.saved_tensors, strict=True):
            operands[i] = saved
        found = iter(formula(grad, *operands))
        grads = [next(found) if isinstance(operand, Tensor) else None for operand in operands]
        return tuple(g if g is not None and g.is_floating_point() else None for g in grads)

    made.register_autograd(differentiate, setup_context=save)


def _own(grad: Tensor | None, like: Tensor) -> Tensor:
    """The gradient in the strides that the formula's fake promises; zeros where nothing flows."""
    return torch.zeros_like(like) if grad is None else torch.empty_like(like).copy_(grad)
