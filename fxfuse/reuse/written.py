"""Which stretches that occur once are run as they are written, operation by operation, and not compiled.

Each C++ kernel costs Inductor a run of the C++ compiler, most of a second, whatever the kernel does; what stands in
front of the layers of a language model (the embedding, the mask, the rotary tables) takes two or three of them, nearly
half of what the layer itself takes. Unfused it costs some microseconds per operation on each call, and its values go
through memory. Both are held to a small share of the graph's: unfused, a stretch loses at most what it costs in eager
mode, and as a share of the call that is about its share of operations (small calls, where each operation costs
the same) or of the bytes that they move (large ones). ``python -m bench.reuse --call-cost`` measures both sides.

On other devices than the CPU each operation is a launch, and a kernel compiles sooner: there every stretch is compiled.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import fx

from fxfuse.reuse.borders import bytes_of, is_opaque
from fxfuse.reuse.plan import Kind, Plan
from fxfuse.reuse.segments import reads_body
from fxfuse.view.ops import function_name

MOST = 0.05
"""Of the operations that a call of the graph executes, and of the bytes that they move: what all such stretches may
have together. Of a fifth that fusion saves in a decode step, a twentieth is one percent."""


def with_written(made: Plan, sites: Collection[fx.Node]) -> Plan:
    """The plan with its small stretches marked.

    Args:
        sites: what a rewrite put into the graph; a kernel was chosen for what the compiler makes of it.
    """
    executed = [node for one, _ in made.calls for node in one.nodes if not reads_body(node)]
    moved = sum(map(_traffic, executed))
    left_operations, left_bytes = MOST * len(executed), MOST * moved
    kinds = list(made.kinds)
    small = [i for i, kind in enumerate(kinds) if kind.copies == 1 and _may_be(kind, sites)]
    for i in sorted(small, key=lambda i: len(kinds[i].first.nodes)):
        nodes = kinds[i].first.nodes
        operations, taken = len(nodes), sum(map(_traffic, nodes))
        if operations > left_operations or taken > left_bytes:
            continue
        left_operations, left_bytes = left_operations - operations, left_bytes - taken
        why = f"{_percent(operations, len(executed))} of the operations, {_percent(taken, moved)} of the bytes moved"
        kinds[i] = replace(kinds[i], as_written=why)
    return replace(made, kinds=tuple(kinds))


def _may_be(kind: Kind, sites: Collection[fx.Node]) -> bool:
    """Whether nothing in a stretch counts on a compiler: everything on the CPU, no rewritten site, no graph of its own
    (its operations are not counted here, and checkpointing is the compiler's to plan)."""
    nodes = kind.first.nodes
    if any(reads_body(node) or node in sites for node in nodes):
        return False
    values = [node.meta.get("example_value") for node in (*kind.first.reads, *nodes)]
    tensors = [v for value in values for v in (value if isinstance(value, tuple | list) else [value])]
    return all(tensor.device.type == "cpu" for tensor in tensors if isinstance(tensor, torch.Tensor))


def _traffic(node: fx.Node) -> float:
    """Bytes that an operation gives, and that a matrix product takes: its weights are more than its result."""
    value = node.meta.get("example_value")
    given = sum(map(bytes_of, value)) if isinstance(value, tuple | list) else bytes_of(value)
    if not is_opaque(node) or function_name(node.target) == "embedding":
        return given
    return given + sum(bytes_of(operand.meta.get("example_value")) for operand in node.all_input_nodes)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / max(whole, 1):.1f} %"
