"""What it costs to end a region between two nodes: the fusions of the inner compiler that are lost there.

Two operations are fused where no opaque one (a matrix product, attention) lies between them, and the value passed is
not stored. So the best border is in front of a matrix product that reads what a norm made: that value is stored in any
case, and the residual sum stays together with the norm after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import fx

from fxfuse import compat
from fxfuse.view.ops import function_name

_OPAQUE = {
    "linear", "matmul", "bmm", "mm", "addmm", "baddbmm", "einsum", "bilinear", "embedding", "conv1d", "conv2d",
    "conv3d", "scaled_dot_product_attention", "grouped_mm", "_grouped_mm", "__matmul__", "__rmatmul__",
    "tag_activation_checkpoint", "wrap",
}  # fmt: skip
_VIEWS = {"view", "reshape", "transpose", "permute", "flatten", "unflatten", "unsqueeze", "squeeze", "expand", "t"}
_AFTER_OPAQUE = 0.25
"""Some matrix products take what follows them as an epilogue."""


@dataclass(frozen=True)
class Cost:
    """For each place in front of a node (and behind the last), in bytes: what a border there makes the compiler store
    or read where it would fuse, and all that crosses it."""

    lost: list[float]
    crossing: list[float]


def costs(nodes: Sequence[fx.Node], last_use: Mapping[fx.Node, int], since: int) -> Cost:
    """What borders cost. Values from before ``since`` cross every border behind it, and count for none."""
    place = {node: i for i, node in enumerate(nodes)}
    depth: dict[fx.Node, int] = {}
    for node in nodes:
        depth[node] = max((depth[n] + is_opaque(n) for n in node.all_input_nodes if n in depth), default=0)
    lost, crossing = [0.0] * (len(nodes) + 2), [0.0] * (len(nodes) + 2)
    for node in nodes[since:]:
        size = bytes_of(node.meta.get("example_value"))
        _span(crossing, place[node], last_use[node], size)
        for reader in () if _is_view(node) else _readers(node):
            if reader not in place or is_opaque(reader) or _asks_size(reader):
                continue
            share = _AFTER_OPAQUE if is_opaque(node) else float(depth[node] == depth[reader])
            _span(lost, place[node], place[reader], share * size)
    return Cost(list(accumulate(lost[:-1])), list(accumulate(crossing[:-1])))


def _span(steps: list[float], after: int, until: int, value: float) -> None:
    """Add ``value`` to every border behind place ``after``, up to the one in front of place ``until``."""
    if value and until > after:
        steps[after + 1] += value
        steps[until + 1] -= value


def is_opaque(node: fx.Node) -> bool:
    """Whether the inner compiler calls this operation as it is, and fuses nothing with it."""
    name = str(node.target) if node.op == "call_method" else function_name(node.target)
    if name in _OPAQUE:
        return True
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in {"aten", "prims"}


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Who computes with a value, as it is or as a view of it: a view is not stored."""
    for user in node.users:
        if _is_view(user):
            yield from _readers(user)
        else:
            yield user


def _is_view(node: fx.Node) -> bool:
    name = str(node.target) if node.op == "call_method" else function_name(node.target)
    return name in _VIEWS and node.op.startswith("call_") and bool(node.all_input_nodes)


def _asks_size(node: fx.Node) -> bool:
    """``x.size(1)`` reads none of the numbers."""
    return isinstance(node.meta.get("example_value"), torch.SymInt | torch.Size | int)


def bytes_of(value: object) -> float:
    """The bytes of a tensor, of a symbolic size its hint; none for anything else."""
    if not isinstance(value, torch.Tensor):
        return 0.0
    count = 1
    for size in value.shape:
        count *= compat.size_hint(size) or 1
    return float(count * value.element_size())
