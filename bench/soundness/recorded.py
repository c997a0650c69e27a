"""A pattern's reference as a list of operations that can be respelled, reordered and edited."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from bench.soundness.spellings import literal
from bench.soundness.tracing import Recorder

_CASTS = {
    "float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16,
}  # fmt: skip


@dataclass(frozen=True)
class Ref:
    """An operand: a capture by name, or the result of the operation with this key."""

    key: int | str


@dataclass
class Op:
    """One operation. ``template`` writes it where ``name`` has no spellings; ``{0}`` is its first argument."""

    key: int
    name: str
    args: list[Any]
    template: str = ""
    region: tuple[str, ...] = ()

    def refs(self) -> list[Ref]:
        return [a for a in self.args if isinstance(a, Ref)]

    def copy(self) -> Op:
        return Op(self.key, self.name, list(self.args), self.template, self.region)


@dataclass
class Recorded:
    """Operations in an order in which they can run, and which are the results."""

    ops: list[Op]
    results: list[Ref] = field(default_factory=list)


def record(function: Any, tensors: Mapping[str, torch.Tensor]) -> Recorded:
    """Run ``function()`` once, which computes on ``tensors``, and hand back what it did."""
    graph = fx.Graph()
    recorder = Recorder(graph)
    names: dict[fx.Node, str] = {}
    for name, tensor in tensors.items():
        holder = graph.placeholder(name)
        recorder.nodes[id(tensor)] = holder
        names[holder] = name
    with recorder:
        results = function()
    results = results if isinstance(results, tuple | list) else (results,)
    flat = [r for r in _flat(results) if isinstance(r, torch.Tensor)]
    returned = [recorder.node_of(r) for r in flat]
    keys: dict[fx.Node, Ref] = {node: Ref(name) for node, name in names.items()}
    ops: list[Op] = []
    for node in graph.nodes:
        if node.op.startswith("call_"):
            keys[node] = Ref(len(ops))
            ops.append(_op(len(ops), node, keys))
    return _without_unread(Recorded(ops, [keys[node] for node in returned]))


def _flat(values: Any) -> list[Any]:
    return [x for v in values for x in (_flat(v) if isinstance(v, tuple | list) else [v])]


def _without_unread(recorded: Recorded) -> Recorded:
    needed = {r.key for r in recorded.results}
    kept = []
    for op in reversed(recorded.ops):
        if op.key in needed:
            kept.append(op)
            needed |= {r.key for r in op.refs()}
    return Recorded(kept[::-1], recorded.results)


def _op(key: int, node: fx.Node, keys: Mapping[fx.Node, Ref]) -> Op:
    name = str(getattr(node.target, "__name__", node.target)).strip("_")
    args = [_lowered(a, keys) for a in node.args]
    kwargs = {k: _lowered(v, keys) for k, v in node.kwargs.items() if v is not None}
    known = _known(name, node, args, kwargs, keys)
    if known is not None:
        return Op(key, *known)
    return Op(key, "", *_written(node, name, args, kwargs))


def _known(
    name: str, node: fx.Node, args: list[Any], kwargs: dict[str, Any], keys: Mapping[fx.Node, Ref]
) -> tuple[str, list[Any]] | None:
    """The operation under a name that has spellings, with its arguments."""
    if name in {"add", "mul", "truediv", "sub"} and len(args) == 2 and not kwargs:
        return name, args
    if name == "div" and len(args) == 2 and not kwargs:
        return "truediv", args
    if name == "pow" and len(args) == 2 and isinstance(args[1], int | float) and args[1] in (2, -0.5, 0.5):
        return {2: "square", -0.5: "rsqrt", 0.5: "sqrt"}[args[1]], args[:1]
    if name in {"square", "rsqrt", "sqrt", "sigmoid", "tanh", "exp", "neg"} and len(args) == 1:
        return name, args
    if name in {"silu", "relu"} and not any(kwargs.values()):
        return name, args[:1]
    if name == "gelu":
        return ("gelu_tanh" if kwargs.get("approximate") == "tanh" else "gelu"), args[:1]
    if name == "mean" and args[1:] + list(kwargs.values()) in ([-1, True], [(-1,), True], [[-1], True]):
        return name, args[:1]
    if name == "linear":
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        return ("linear", args[:2]) if bias is None else ("linear_bias", [*args[:2], bias])
    if name == "softmax" and (kwargs.get("dim") == -1 or args[1:] == [-1]) and kwargs.get("dtype") is None:
        return name, args[:1]
    if name == "to" and len(args) == 2 and isinstance(args[1], torch.dtype) and not kwargs:
        return "cast", args
    if name in _CASTS and len(args) == 1:
        return "cast", [args[0], _CASTS[name]]
    if name == "type_as":
        other: Any = node.args[1]
        return "cast", [args[0], other.meta["example_value"].dtype]
    if name == "getitem" and isinstance(node.args[1], int):
        source: Any = node.args[0]
        if str(getattr(source.target, "__name__", source.target)) == "chunk" and source.args[1:] in ((2, -1),):
            return ("first_half" if node.args[1] == 0 else "second_half"), [keys[source.args[0]]]
    if name == "transpose" and set(args[1:]) == {-1, -2}:
        return "transpose_last", args[:1]
    if name == "rms_norm" and len(args) + len(kwargs) == 4:
        given = [*args, *kwargs.values()]
        return name, [given[0], given[2], given[3]]
    if name == "layer_norm" and len(args) + len(kwargs) == 5:
        given = [*args, *kwargs.values()]
        return name, [given[0], *given[2:]]
    if name == "unflatten" and args[1:] == [-1, (-1, 2)]:
        return "split_heads", args[:1]
    if name == "where" and len(args) == 3:
        return name, args
    if name == "repeat_interleave" and args[1:] == [2] and kwargs.get("dim") == -2:
        return "repeat", args[:1]
    if name == "getitem" and node.args[1] == (..., slice(2, None, None)):
        return "slice_from_2", args[:1]
    joined: Any = node.args[0] if node.args else None
    if name == "cat" and kwargs.get("dim", args[-1]) == -1 and len(joined) == 2:
        return "cat_last", [keys[n] for n in joined]
    return None


def _lowered(value: Any, keys: Mapping[fx.Node, Ref]) -> Any:
    def ref(part: Any) -> Any:
        return keys.get(part, part) if isinstance(part, fx.Node) else part

    return fx.node.map_aggregate(value, ref)


def _written(node: fx.Node, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], str]:
    """The arguments that are values or constants of their own, and a template that writes the call with them."""
    out: list[Any] = []

    def text(value: Any) -> str:
        if isinstance(value, tuple | list) and _holds_ref(value):
            inner = ", ".join(text(v) for v in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner},)"
        if isinstance(value, Ref) or (isinstance(value, int | float) and not isinstance(value, bool)):
            out.append(value)
            return f"{{{len(out) - 1}}}"
        return literal(value).replace("{", "{{").replace("}", "}}")

    if node.target is operator.getitem:
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return out, f"{text(args[0])}[{', '.join(text(i) for i in index)}]"
    if node.target is getattr:
        return out, f"{text(args[0])}.{args[1]}"
    if node.target in _SYMBOLS:
        return out, f"({text(args[0])} {_SYMBOLS[node.target]} {text(args[1])})"
    listed = [text(a) for a in args]
    named = [f"{k}={text(v)}" for k, v in kwargs.items() if not k.startswith("_")]
    if node.op == "call_method":
        return out, f"{listed[0]}.{node.target}({', '.join([*listed[1:], *named])})"
    module = "F" if hasattr(F, name) and not hasattr(torch.Tensor, name) else "torch"
    if not hasattr(torch, name) and hasattr(F, name):
        module = "F"
    return out, f"{module}.{name}({', '.join([*listed, *named])})"


_SYMBOLS = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/", operator.pow: "**",
    operator.matmul: "@", operator.lt: "<", operator.le: "<=", operator.gt: ">", operator.ge: ">=",
    operator.eq: "==", operator.ne: "!=",
}  # fmt: skip


def _holds_ref(value: Any) -> bool:
    return isinstance(value, Ref) or (isinstance(value, tuple | list) and any(map(_holds_ref, value)))
