"""What an input of a graph is: a parameter, a buffer or a runtime input, and where in the model it lives."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import torch
from torch import fx

from fxfuse.compat import aot_input, dynamo_placeholders, static_aot_inputs


class LeafKind(Enum):
    PARAMETER = "parameter"
    BUFFER = "buffer"
    INPUT = "input"
    CONSTANT = "constant"
    UNTOLD = "untold"
    """An input of a graph that does not tell parameters from other inputs (one that AOTAutograd made of a part of
    Dynamo's graph). It may stand for a weight that a kernel reads as it is; nothing is derived from it."""


@dataclass(frozen=True)
class Leaf:
    """An input of a graph. ``position`` is its place in the flat argument list; None for an attribute of the graph.

    ``origin`` is its path in the model, or Dynamo's source of it, which only those who ask for the path spell out.
    """

    kind: LeafKind
    origin: Any
    position: int | None = None

    @cached_property
    def path(self) -> str:
        return self.origin if isinstance(self.origin, str) else module_path(self.origin)


def classify(node: fx.Node, position: int | None, example: Any) -> Leaf:
    """What this placeholder or ``get_attr`` node is. ``example``: the live argument, where there is one."""
    if node.op == "get_attr":
        return Leaf(_kind_of_attribute(node, example), str(node.target))
    source = getattr(node, "_dynamo_source", None) or getattr(node.meta.get("grapharg"), "source", None)
    origin = source if source is not None else str(node.target)
    if _is_parameter(example) or _is_parameter(node.meta.get("example_value")):
        return Leaf(LeafKind.PARAMETER, origin, position)
    if source is not None and "_buffers" in _members(source):
        return Leaf(LeafKind.BUFFER, origin, position)
    return Leaf(LeafKind.INPUT, origin, position)


def _is_parameter(value: Any) -> bool:
    return type(value) is torch.nn.Parameter or isinstance(value, torch.nn.Parameter)  # which is Python, and slow


def _kind_of_attribute(node: fx.Node, value: Any) -> LeafKind:
    owner, _, name = str(node.target).rpartition(".")
    if isinstance(value, torch.nn.Parameter) or name.startswith(_FROZEN):
        return LeafKind.PARAMETER
    try:
        module = node.graph.owning_module.get_submodule(owner) if node.graph.owning_module is not None else None
    except AttributeError:
        return LeafKind.CONSTANT
    held = module is not None and name in dict(module.named_buffers(recurse=False))
    return LeafKind.BUFFER if held and not name.startswith(_LIFTED) else LeafKind.CONSTANT


_FROZEN = "_frozen_param"  # Inductor's freezing makes attributes of parameters
_LIFTED = ("lifted_tensor", "_tensor_constant")  # buffers only in name: constants of the traced code


def leaves_of(program: fx.GraphModule | torch.export.ExportedProgram) -> list[Leaf] | None:
    """What each placeholder is, where the graph's own records say so: for ``View(graph, leaves=...)``.

    An exported program has its signature. In graphs of AOTAutograd (so in Inductor's post-grad passes) placeholders
    have descriptors, and while the graph is compiled its context says which of them are parameters of the model.
    None for every other graph: there each placeholder tells by itself.
    """
    if isinstance(program, fx.GraphModule):
        return _leaves_of_aot(program)
    return [
        Leaf(_KINDS_OF_SIGNATURE.get(spec.kind.name, LeafKind.CONSTANT), spec.target or spec.arg.name, position)
        for position, spec in enumerate(program.graph_signature.input_specs)
    ]


_KINDS_OF_SIGNATURE = {
    "PARAMETER": LeafKind.PARAMETER, "BUFFER": LeafKind.BUFFER, "USER_INPUT": LeafKind.INPUT,
}  # fmt: skip


def _leaves_of_aot(gm: fx.GraphModule) -> list[Leaf] | None:
    holders = gm.graph.find_nodes(op="placeholder")
    inputs = [aot_input(node) for node in holders]
    if not any(inputs):
        return None
    static = static_aot_inputs()
    named = any(kind in _KINDS_OF_DESCRIPTOR for kind, _ in filter(None, inputs))
    origins = dynamo_placeholders() if static else []
    leaves = []
    for position, (node, given) in enumerate(zip(holders, inputs, strict=True)):
        kind, which = given or ("other", 0)
        path = str(node.target)
        if kind in _KINDS_OF_DESCRIPTOR:
            leaves.append(Leaf(_KINDS_OF_DESCRIPTOR[kind], str(which), position))
        elif kind != "plain" or named:
            leaves.append(Leaf(LeafKind.INPUT, path, position))
        elif not static:
            leaves.append(Leaf(LeafKind.UNTOLD, path, position))
        else:
            origin = classify(origins[which], position, None) if which < len(origins) else None
            is_static = which in static
            if origin is not None and (origin.kind is LeafKind.INPUT or is_static):
                leaves.append(origin)
            else:
                leaves.append(Leaf(LeafKind.PARAMETER if is_static else LeafKind.INPUT, path, position))
    return leaves


_KINDS_OF_DESCRIPTOR = {"parameter": LeafKind.PARAMETER, "buffer": LeafKind.BUFFER}


def module_path(source: Any) -> str:
    """``model.layers.0.mlp.gate_proj.weight`` for Dynamo's source of that parameter."""
    return ".".join(m for m in _members(source) if m not in _CONTAINERS)


_CONTAINERS = {"_modules", "_parameters", "_buffers", "__dict__"}
"""What Dynamo names on the way to a module's member; ``__dict__`` where a module has a ``__getattr__`` of its own."""


def _members(source: Any) -> list[str]:
    """The names on the way from a root variable to what the source names; without the root where that is a module."""
    members: list[str] = []
    at = source
    while at is not None:
        kind = type(at)
        word = _WORDS.get(kind)
        if word is None:
            word = _WORDS[kind] = _word_of(kind)
        if word:
            members.append(str(getattr(at, word)))
        elif not _CONTAINERS.intersection(members):
            root = str(getattr(at, "local_name", None) or getattr(at, "global_name", ""))
            members += [root] if root and (root != "self" or not members) else []
        at = getattr(at, "base", None)
    return members[::-1]


_WORDS: dict[type, str] = {}


def _word_of(kind: type) -> str:
    """Under which name one of Dynamo's kinds of source keeps its last step; an empty string for a root."""
    known = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    return next((word for word in ("member", "index") if word in known or hasattr(kind, word)), "")


_KEY = re.compile(r"""\[(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^\]'"]+))\]""")
_DICT = re.compile(r"(?:^|\.)__dict__\._modules(?=\.|$)")
_ROOT = re.compile(r"^[LG]\[['\"]([^'\"]*)['\"]\]\.?")


def stack_path(node: fx.Node) -> str:
    """The path of the innermost module whose forward made this node, relative to the compiled callable."""
    stack = node.meta.get("nn_module_stack")
    return readable_path(next(reversed(stack.values()))[0]) if stack else ""


def stack_paths(node: fx.Node) -> list[str]:
    """The paths of all modules in whose forward this node was made, outermost first."""
    return [readable_path(entry[0]) for entry in (node.meta.get("nn_module_stack") or {}).values()]


@functools.lru_cache(1 << 14)
def readable_path(path: object) -> str:
    """A module's path as Dynamo writes it in ``nn_module_stack``, as ``named_modules`` does."""
    plain = _ROOT.sub("", str(path)).replace("._modules", "")
    path = _KEY.sub(lambda key: "." + next(g for g in key.groups() if g is not None), plain)
    return _DICT.sub("", path).lstrip(".")


def innermost_roots(paths: Sequence[str]) -> tuple[str, ...]:
    """The paths that no other one contains, in order of appearance; the root module itself is ``""``."""
    unique = list(dict.fromkeys(paths))
    named = [p for p in unique if p]
    kept = [p for p in named if not any(p.startswith(q + ".") for q in named if q != p)]
    return tuple(kept) or tuple(unique[:1])
