"""Why layers that look alike are not compiled once: the first operation in which two of them differ."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise, zip_longest
from typing import Any

from torch import fx

from fxfuse.reuse.labels import facts, operation
from fxfuse.view.leaves import stack_path
from fxfuse.view.ops import function_name


def difference(nodes: Sequence[fx.Node], least: int) -> str:
    """A sentence: where two of the modules that a model numbers (``layers.0``, ``layers.1``) come apart."""
    layers = _numbered(nodes)
    for folder, by_number in layers.items():
        numbers = sorted(n for n in by_number if len(by_number[n]) >= least)
        for a, b in pairwise(numbers):
            for ours, theirs in zip_longest(by_number[a], by_number[b]):
                if ours is None or theirs is None:
                    counts = f"{len(by_number[a])} and {len(by_number[b])} operations"
                    return f"{folder}.{a} and {folder}.{b} have {counts}"
                if _told(ours) != _told(theirs):
                    return f"{folder}.{a} and {folder}.{b} differ: {_shown(ours)} and {_shown(theirs)}"
    return f"no stretch of {least} operations or more repeats itself"


def _numbered(nodes: Sequence[fx.Node]) -> dict[str, dict[int, list[fx.Node]]]:
    """The operations of numbered modules, by the path before the number; outermost numbers only."""
    found: dict[str, dict[int, list[fx.Node]]] = {}
    for node in nodes:
        parts = stack_path(node).split(".")
        at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if at:
            found.setdefault(".".join(parts[:at]), {}).setdefault(int(parts[at]), []).append(node)
    return found


def _told(node: fx.Node) -> Hashable:
    return operation(node, lambda n: facts(n.meta.get("example_value"))), facts(node.meta.get("example_value"))


def _shown(node: fx.Node) -> str:
    name = str(node.target) if node.op == "call_method" else function_name(node.target)
    constants = [repr(a) for a in (*node.args, *node.kwargs.values()) if not isinstance(a, fx.Node)]
    value: Any = node.meta.get("example_value")
    shape = getattr(value, "shape", None)
    size = f" of {tuple(shape)}" if shape is not None else ""
    return f"{node.name}, {name}({', '.join(constants)}){size}"
