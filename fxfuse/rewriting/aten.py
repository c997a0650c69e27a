"""A kernel's operations in an ATen graph: the function is traced on fake tensors, and the trace put in place."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from fxfuse import compat
from fxfuse.rewriting.dialect import Dialect
from fxfuse.rewriting.errors import RewriteError
from fxfuse.rewriting.examples import example_of, mode_of
from fxfuse.rewriting.operands import Call


def append_traced(
    graph: fx.Graph, call: Call, meta: Mapping[str, Any], dialect: Dialect, made: list[fx.Node]
) -> list[fx.Node]:
    """Append the operations of ``call`` at the graph's insertion point; returns the nodes of its results.

    Custom ops stay one call. Composite ops stay whole in ``Dialect.EXPORT`` and are decomposed as the dialect says in
    the others, where the trace is functional, too.

    Args:
        meta: what every new node is told about its origin.
        made: gets every new node, also where the call fails half-way.

    Raises:
        RewriteError: the trace holds a tensor constant, a graph of its own, or (where it may not) a write.
    """
    nodes = call.nodes
    examples = [example_of(node) for node in nodes]
    missing = next((n for n, e in zip(nodes, examples, strict=True) if e is None), None)
    if missing is not None:
        raise RewriteError(f"kernel {call.kernel.name!r} cannot be traced: {missing.name} has no example value")
    traced = _trace(call, nodes, examples, dialect)
    env = dict(zip(traced.graph.find_nodes(op="placeholder"), nodes, strict=True))
    for node in traced.graph.nodes:
        if node.op == "call_function":
            copied = env[node] = graph.node_copy(node, env.__getitem__)
            made.append(copied)
            copied.meta = {**meta, **{k: v for k, v in node.meta.items() if k in {"val", "tensor_meta"}}}
    returned: Any = traced.graph.output_node().args[0]
    return [env[result] for result in returned]


def _trace(call: Call, nodes: list[fx.Node], examples: list[Any], dialect: Dialect) -> fx.GraphModule:
    def function(*tensors: Any) -> tuple[Any, ...]:
        return call(dict(zip(nodes, tensors, strict=True)).__getitem__, torch.Tensor)

    traced = _make(function, examples, dialect)
    if dialect is not Dialect.EXPORT and _writer(traced) is not None:
        traced = _make(torch.func.functionalize(function), examples, dialect)
        writer = _writer(traced)
        if writer is not None:
            what = f"kernel {call.kernel.name!r} writes to an operand, or calls an op that writes ({writer.target})"
            raise RewriteError(f"{what}; this graph must stay free of writes")
    held = next((n for n in traced.graph.nodes if n.op in {"get_attr", "call_module"}), None)
    if held is not None:
        what = f"kernel {call.kernel.name!r} makes a tensor constant or a graph of its own ({held.target})"
        raise RewriteError(f"{what}; a graph that is rewritten in place cannot take it in")
    return traced


def _make(function: Any, examples: list[Any], dialect: Dialect) -> fx.GraphModule:
    with contextlib.ExitStack() as stack:
        stack.enter_context(mode_of(examples))
        stack.enter_context(compat.without_autocast())
        stack.enter_context(torch.no_grad())
        if dialect is Dialect.EXPORT:
            traced = compat.make_fx(function, examples, pre_dispatch=True)
        else:
            traced = compat.make_fx(function, examples, decompositions=_decompositions(dialect))
    traced.graph.eliminate_dead_code()
    return traced


@functools.cache
def _decompositions(dialect: Dialect) -> Mapping[Any, Any]:
    return compat.inductor_decompositions() if dialect is Dialect.INDUCTOR else compat.core_decompositions()


def _writer(traced: fx.GraphModule) -> fx.Node | None:
    return next((n for n in traced.graph.nodes if _is_mutable(n.target)), None)


def _is_mutable(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
