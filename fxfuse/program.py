"""A node of a graph as a line of Python: ``F.linear(h, gate)``, ``x.pow(2)``, ``a * b``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

_LONGEST = 160
_LONGEST_LINE = 480
"""Longer, since a name that is cut is no name: Dynamo's names of inputs spell their whole path."""
_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "matmul": "@",
    "and_": "&", "or_": "|", "xor": "^", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
    "lshift": "<<", "rshift": ">>",
}  # fmt: skip
_PREFIX = {"neg": "-", "invert": "~", "not_": "not ", "pos": "+"}
_HOMES = {
    "torch._C._nn": "F", "torch.nn.functional": "F", "torch._C._special": "torch.special", "_operator": "operator",
    "torch._VariableFunctionsClass": "torch", "builtins": "", "math": "math", "torch": "torch",
}  # fmt: skip


_AS_THEY_ARE = (int, float, bool, str, type(None), torch.dtype, torch.device, type(Ellipsis))


class Ref(str):
    """The name of a node, among the operands of another."""

    __slots__ = ()


def target_name(target: Any) -> str:
    """How a reader writes what a node calls: ``F.linear``, ``torch.rsqrt``, ``operator.mul``, ``torch.ops.aten.mm``."""
    if isinstance(target, str):
        return target
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket | torch._ops.HigherOrderOperator):
        name = str(target)
        return f"torch.ops.{name}" if "." in name else f"torch.ops.higher_order.{name}"
    name = getattr(target, "__name__", None) or type(target).__name__
    module = getattr(target, "__module__", None) or ""
    if not module and hasattr(torch, name):
        module = "torch"
    home = _HOMES.get(module, module.rpartition(".")[2])
    return f"{home}.{name}" if home else str(name)


def plain(operand: Any) -> Any:
    """An operand without what keeps graphs and tensors alive: nodes by name, symbolic sizes and the rest as text."""
    kind = type(operand)
    if kind in _AS_THEY_ARE:
        return operand
    if isinstance(operand, torch.fx.Node):
        return Ref(operand.name)
    if isinstance(operand, list | tuple):
        return [plain(o) for o in operand] if isinstance(operand, list) else tuple(plain(o) for o in operand)
    if isinstance(operand, slice):
        return slice(plain(operand.start), plain(operand.stop), plain(operand.step))
    if isinstance(operand, Mapping):
        return {str(k): plain(v) for k, v in operand.items()}
    if isinstance(operand, torch.Tensor):
        return Ref(f"<a tensor of {tuple(operand.shape)}>")
    return Ref(str(operand)[:_LONGEST])


def code_of(op: str, target: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The node as Python. Operands are those of :func:`plain`."""
    if op == "placeholder":
        return "input"
    if op == "output":
        return f"return {words(args[0]) if args else ''}".rstrip()
    if op == "get_attr":
        return f"self.{target}"
    home, _, name = target.rpartition(".")
    if op == "call_method" and args:
        return _cut(f"{_atom(args[0])}.{target}({_call(args[1:], kwargs)})")
    if op == "call_module":
        return _cut(f"self.{target}({_call(args, kwargs)})")
    if home == "operator" and not kwargs:
        if name in _INFIX and len(args) == 2:
            return _cut(f"{_atom(args[0])} {_INFIX[name]} {_atom(args[1])}")
        if name in _PREFIX and len(args) == 1:
            return _cut(f"{_PREFIX[name]}{_atom(args[0])}")
        if name == "getitem" and len(args) == 2:
            inner = ", ".join(map(words, args[1])) if isinstance(args[1], tuple) and args[1] else words(args[1])
            return _cut(f"{_atom(args[0])}[{inner}]")
    return _cut(f"{target}({_call(args, kwargs)})")


def words(operand: Any) -> str:
    """An operand as Python."""
    if isinstance(operand, Ref):
        return str(operand)
    if isinstance(operand, list):
        return f"[{', '.join(map(words, operand))}]"
    if isinstance(operand, tuple):
        return f"({', '.join(map(words, operand))}{',' if len(operand) == 1 else ''})"
    if isinstance(operand, dict):
        return "{" + ", ".join(f"{k!r}: {words(v)}" for k, v in operand.items()) + "}"
    if isinstance(operand, slice):
        parts = ["" if p is None else words(p) for p in (operand.start, operand.stop)]
        return ":".join([*parts, words(operand.step)] if operand.step is not None else parts)
    if operand is Ellipsis:
        return "..."
    if isinstance(operand, float) and not math.isfinite(operand):
        return f"float('{operand}')"
    return repr(operand)


def _call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    return ", ".join([*map(words, args), *(f"{k}={words(v)}" for k, v in kwargs.items())])


def _atom(operand: Any) -> str:
    text = words(operand)
    return text if isinstance(operand, Ref | int | float) and not text.startswith("-") else f"({text})"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_LINE else text[: _LONGEST_LINE - 1] + "…"
