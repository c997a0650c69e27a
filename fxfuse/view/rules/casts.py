"""Casts: their spellings, and those that type promotion makes anyway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from fxfuse.safeguards import safeguard
from fxfuse.view.rules.conditions import is_parameter
from fxfuse.view.rules.registry import rule
from fxfuse.view.values import DtypeOf, SymbolicMeta, Value

if TYPE_CHECKING:
    from fxfuse.view.view import View

WIDENING_IS_EXACT = safeguard("widening_is_exact", "a cast of a weight left out that promotion does not make exactly")
PROMOTES_ALONE = safeguard("promotes_alone", "a cast of a weight left out beside an operand that does not promote it")

_METHOD_DTYPES = {
    "float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16,
    "int": torch.int32, "long": torch.int64, "short": torch.int16, "bool": torch.bool,
}  # fmt: skip
_CAST_KWARGS = {"dtype", "device", "copy", "non_blocking", "memory_format", "layout", "pin_memory", "other"}


def cast_of(view: View, node: fx.Node) -> Value | None:
    """The canonical ``cast`` that a ``to``, ``type``, ``type_as``, ``float``... spells; None where it does more."""
    args, kwargs = node.args, node.kwargs
    if not args or not isinstance(args[0], fx.Node) or not kwargs.keys() <= _CAST_KWARGS:
        return None
    meta, source = view.meta(node), view.meta(args[0])
    if meta is None or source is None:
        wanted = _dtype_as_written(view, node)
        if wanted is None:
            return None
        meta = SymbolicMeta(dtype=wanted) if meta is None else meta
    elif meta.device != source.device:
        return None
    else:
        wanted = meta.dtype
    return Value("cast", {"input": args[0], "dtype": wanted}, node, meta=meta)


def _dtype_as_written(view: View, node: fx.Node) -> Any:
    """What a call casts to, as far as its arguments tell; None where it may do more than cast."""
    args, kwargs = node.args, node.kwargs
    target = str(node.target) if node.op == "call_method" else "to"
    if target in _METHOD_DTYPES:
        return _METHOD_DTYPES[target]
    if target == "type_as" and len(args) == 2 and isinstance(args[1], fx.Node):
        return DtypeOf(args[1])
    candidates = [*args[1:], kwargs.get("dtype"), kwargs.get("other")]
    dtypes = [c for c in candidates if isinstance(c, torch.dtype | DtypeOf)]
    others = [c for c in candidates if isinstance(c, fx.Node)]
    if len(dtypes) + len(others) != 1:
        return None
    if target != "type" and any(isinstance(c, str | torch.device) for c in (*args[1:], kwargs.get("device"))):
        return None
    return dtypes[0] if dtypes else view.dtype_reference(others[0])


EXACT_WIDENINGS = {
    (torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.bfloat16, torch.float64),
    (torch.float16, torch.float64), (torch.float32, torch.float64),
}  # fmt: skip


PROMOTED = "implied widening cast"
"""The step of a value whose operand's cast was left out: promotion makes the same dtype, which a match must ask for."""


def _implied_widening(view: View, value: Value) -> Value | None:
    """``w.float() * h``, with ``w`` a weight and ``h`` in fp32 already: promotion does the same exactly."""
    for name, other in (("input", "other"), ("other", "input")):
        cast = view.operand(value.args[name])
        if not isinstance(cast, Value) or cast.op != "cast":
            continue
        sibling = view.operand(value.args[other])
        source = view.operand(cast.args["input"])
        if not isinstance(sibling, Value) or sibling.dtype != cast.dtype or not is_parameter(source):
            continue  # of an activation the pattern itself may hold the cast
        symbolic = view.symbolic and cast.dtype is torch.float32 and source.dtype is not torch.float32
        if not WIDENING_IS_EXACT(symbolic or (source.dtype, cast.dtype) in EXACT_WIDENINGS):
            continue
        if source is sibling or not PROMOTES_ALONE(sibling.shape != ()):
            continue
        alone = len(cast.node.users) == 1 or view.symbolic
        return value.become(value.op, {**value.args, name: source}, PROMOTED, cast.nodes if alone else ())
    return None


rule("mul", "mul", reads="cast")(_implied_widening)
rule("add", "add", reads="cast")(_implied_widening)
