"""What an input of a graph is: a parameter, a buffer or a runtime input, and where in the model it lives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import fx


class LeafKind(Enum):
    PARAMETER = "parameter"
    BUFFER = "buffer"
    INPUT = "input"
    CONSTANT = "constant"


@dataclass(frozen=True)
class Leaf:
    """An input of a graph. ``position`` is its place in the flat argument list; None for an attribute of the graph."""

    kind: LeafKind
    path: str
    position: int | None = None


def classify(node: fx.Node, position: int | None, example: Any) -> Leaf:
    """What this placeholder or ``get_attr`` node is. ``example``: the live argument, where there is one."""
    if node.op == "get_attr":
        kind = LeafKind.PARAMETER if isinstance(example, torch.nn.Parameter) else LeafKind.CONSTANT
        return Leaf(kind, str(node.target))
    source = getattr(node, "_dynamo_source", None) or getattr(node.meta.get("grapharg"), "source", None)
    path = module_path(source) if source is not None else str(node.target)
    if isinstance(example, torch.nn.Parameter) or isinstance(node.meta.get("example_value"), torch.nn.Parameter):
        return Leaf(LeafKind.PARAMETER, path, position)
    if source is not None and "_buffers" in _members(source):
        return Leaf(LeafKind.BUFFER, path, position)
    return Leaf(LeafKind.INPUT, path, position)


def module_path(source: Any) -> str:
    """``model.layers.0.mlp.gate_proj.weight`` for Dynamo's source of that parameter."""
    return ".".join(m for m in _members(source) if m not in _CONTAINERS)


_CONTAINERS = {"_modules", "_parameters", "_buffers"}


def _members(source: Any) -> list[str]:
    """The names on the way from a root variable to what the source names; without the root where that is a module."""
    members: list[str] = []
    at = source
    while at is not None:
        if hasattr(at, "member"):
            members.append(str(at.member))
        elif hasattr(at, "index"):
            members.append(str(at.index))
        elif not _CONTAINERS.intersection(members):
            root = str(getattr(at, "local_name", None) or getattr(at, "global_name", ""))
            members += [root] if root and (root != "self" or not members) else []
        at = getattr(at, "base", None)
    return members[::-1]


_KEY = re.compile(r"""\[(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^\]'"]+))\]""")
_ROOT = re.compile(r"^[LG]\[['\"]([^'\"]*)['\"]\]\.?")


def stack_path(node: fx.Node) -> str:
    """The path of the innermost module whose forward made this node, relative to the compiled callable."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = next(reversed(stack.values()))[0]
    path = _ROOT.sub("", str(path)).replace("._modules", "")
    path = _KEY.sub(lambda key: "." + next(g for g in key.groups() if g is not None), path)
    return path.lstrip(".")


def innermost_roots(paths: Sequence[str]) -> tuple[str, ...]:
    """The paths that no other one contains, in order of appearance; the root module itself is ``""``."""
    unique = list(dict.fromkeys(paths))
    named = [p for p in unique if p]
    kept = [p for p in named if not any(p.startswith(q + ".") for q in named if q != p)]
    return tuple(kept) or tuple(unique[:1])
