"""What a graph does besides computing values: writes in place, aliases, and switches of grad mode and autocast.

Understood well enough to refuse: a site that a write or a switch could disturb is left alone. What cannot be
understood (a foreign function, a higher-order op without a readable body) counts as writing to all its tensors.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import fx

from fxfuse.view.ops import FUNCTIONS, OpSpec, is_transpose_attribute, spec_of

_INPLACE_OPERATORS = {
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod,
    operator.ipow, operator.imatmul, operator.iand, operator.ior, operator.ixor, operator.ilshift,
    operator.irshift, operator.setitem, operator.delitem,
}  # fmt: skip
KNOWN_MODULES = {"torch", "_operator", "operator", "math", "builtins", "fxfuse"}
"""Whose functions write only what their names and flags say; any other module's may write all that they are given."""
_NOT_A_WRITE = {"requires_grad_"}
_PURE_BODIES = {"tag_activation_checkpoint", "wrap", "wrap_activation_checkpoint"}
_FUNCTIONALIZED = {"auto_functionalized", "auto_functionalized_v2", "triton_kernel_wrapper_functional"}
"""Ops that write to copies of what they are given, and return these."""
_REINPLACED = "only_clone_these_tensors"  # Inductor's word, at its end, that some are written after all
_GRAD_SWITCHES = {"_set_grad_enabled", "_enter_inference_mode", "_exit_inference_mode", "_set_fwd_grad_enabled"}
_SWITCHES = _GRAD_SWITCHES | {"_enter_autocast", "_exit_autocast"}


class Effects:
    """Writes, aliases and mode switches of one graph, read once."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph

    @cached_property
    def order(self) -> dict[fx.Node, int]:
        return {node: i for i, node in enumerate(self.graph.nodes)}

    @cached_property
    def _suspects(self) -> list[tuple[int, fx.Node]]:
        """The nodes, with their places, whose arguments must be looked at: few, in most graphs."""
        pure = _pure_functions()
        return [(i, node) for i, node in enumerate(self.graph.nodes) if not _only_computes(node, pure)]

    @cached_property
    def writes(self) -> list[tuple[fx.Node, tuple[fx.Node, ...]]]:
        """Each writing node with the nodes that it writes to, in graph order."""
        every = ((node, tuple(written_by(node))) for _, node in self._suspects)
        return [(node, written) for node, written in every if written]

    @cached_property
    def switches(self) -> list[tuple[int, fx.Node]]:
        return [(i, node) for i, node in self._suspects if switches_mode(node)]

    def grad_enabled(self, node: fx.Node, ambient: bool) -> bool:
        """Whether grad mode is on at this node, where it is ``ambient`` on entry to the graph."""
        enabled, outer = ambient, []
        for i, switch in self.switches:
            if i > self.order[node]:
                break
            name = _name(switch)
            if name == "_set_grad_enabled":
                enabled = bool(switch.args[0])
            elif name == "_enter_inference_mode":
                outer.append(enabled)
                enabled = enabled and not (switch.args and switch.args[0])
            elif name == "_exit_inference_mode" and outer:
                enabled = outer.pop()
        return enabled

    def under_autocast(self, node: fx.Node) -> bool:
        """Whether an autocast region that the graph itself enters is open at this node."""
        depth = 0
        for i, switch in self.switches:
            if i > self.order[node]:
                break
            depth += {"_enter_autocast": 1, "_exit_autocast": -1}.get(_name(switch), 0)
        return depth > 0

    @cached_property
    def _families(self) -> dict[fx.Node, fx.Node]:
        parent: dict[fx.Node, fx.Node] = {}

        def root(node: fx.Node) -> fx.Node:
            while node in parent:
                node = parent[node]
            return node

        by_storage: dict[int, fx.Node] = {}
        for node in self.graph.nodes:
            spec = spec_of(node)
            if (spec is not None and spec.alias) or is_transpose_attribute(node) or written_by_first(node):
                source = next(_nodes_in((node.args, node.kwargs)), None)
                if source is not None and root(source) is not root(node):
                    parent[root(node)] = root(source)
            elif spec is None and "example_value" not in node.meta and "val" not in node.meta:
                for source in _may_be_aliased(node):  # without metadata an unknown op may alias anything that it reads
                    if root(source) is not root(node):
                        parent[root(node)] = root(source)
            for key in storages(node):
                first = by_storage.setdefault(key, node)
                if root(first) is not root(node):
                    parent[root(node)] = root(first)
        return {node: root(node) for node in self.graph.nodes}

    def family(self, node: fx.Node) -> fx.Node:
        """One representative for all nodes that may share storage with this one."""
        return self._families[node]

    @cached_property
    def _written_families(self) -> set[fx.Node]:
        return {self.family(target) for _, targets in self.writes for target in targets}

    @cached_property
    def _last_write(self) -> dict[fx.Node, int]:
        """Each written family's last write, as a place in the graph."""
        last: dict[fx.Node, int] = {}
        for writer, targets in self.writes:
            for target in targets:
                last[self.family(target)] = self.order[writer]
        return last

    def written_after(self, node: fx.Node, place: int) -> bool:
        """Whether anything after ``place`` writes to storage that this node may share."""
        return self._last_write.get(self.family(node), -1) > place

    def share_storage(self, a: fx.Node, b: fx.Node) -> bool:
        """Whether two nodes are known to be one storage, so that a write to one is a write to the other."""
        ours, theirs = list(storages(a)), list(storages(b))
        return bool(ours) and ours == theirs

    def is_written(self, node: fx.Node) -> bool:
        """Whether anything in the graph writes to storage that this node may share."""
        return bool(self.writes) and self.family(node) in self._written_families


def _may_be_aliased(node: fx.Node) -> list[fx.Node]:
    """The operands that the result of an unknown op may share storage with."""
    if isinstance(node.target, torch._ops.OpOverload):
        arguments = zip(node.target._schema.arguments, node.args, strict=False)
        return list(_nodes_in([value for argument, value in arguments if argument.alias_info is not None]))
    return node.all_input_nodes


@functools.cache
def _inplace_position(target: Any) -> int | None:
    """Where a function that the table does not know takes ``inplace``, or None."""
    try:
        return list(inspect.signature(target).parameters).index("inplace")
    except (TypeError, ValueError):
        return None


def switches_mode(node: fx.Node) -> bool:
    """Whether this node begins or ends a grad-mode or autocast region."""
    return node.op == "call_function" and _name(node) in _SWITCHES


def written_by_first(node: fx.Node) -> bool:
    """Whether the result of this node is its first argument, written in place."""
    return any(target is node.args[0] for target in written_by(node)) if node.args else False


def written_by(node: fx.Node) -> Iterator[fx.Node]:
    """The operands that this node writes to."""
    if node.op == "call_method":
        if _is_inplace_method(str(node.target)) and isinstance(node.args[0], fx.Node):
            yield node.args[0]
        return
    if node.op == "call_module":
        yield from _written_by_module(node)
        return
    if node.op != "call_function":
        return
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        yield from _written_by_schema(node, target)
        return
    if isinstance(target, torch._ops.OpOverloadPacket):
        for name in target.overloads():
            yield from _written_by_schema(node, getattr(target, name))
        return
    if isinstance(target, torch._ops.HigherOrderOperator):
        yield from _written_by_body(node, target)
        return
    if target in _INPLACE_OPERATORS:
        if isinstance(node.args[0], fx.Node):
            yield node.args[0]
        return
    out = node.kwargs.get("out")
    if out is not None:
        yield from _nodes_in(out)
    yield from _written_by_name(node)
    name = _name(node)
    spec = spec_of(node)
    if node.kwargs.get("inplace") or _given_inplace(node, spec):
        yield from _nodes_in(node.args[:1])
    elif spec is None:
        module = str(getattr(target, "__module__", None) or "torch")
        if module in {"_operator", "operator"}:
            return  # `and_` and `or_` are no writes; those that are stand in the table above
        if name.endswith("_") and not name.endswith("__"):
            yield from _nodes_in(node.args[:1])
        elif module.partition(".")[0] not in KNOWN_MODULES:
            yield from _nodes_in((node.args, tuple(node.kwargs.values())))


def _only_computes(node: fx.Node, pure: frozenset[Any]) -> bool:
    """Whether it can be told without looking at the arguments that a node neither writes nor switches anything."""
    op = node.op
    if op == "call_function":
        try:
            return node.target in pure and _FLAGS.isdisjoint(node.kwargs)
        except TypeError:  # an unhashable callable
            return False
    if op == "call_method":
        return not _is_inplace_method(str(node.target))
    return op in _NO_CALLS


_NO_CALLS = {"placeholder", "get_attr", "output"}


@functools.cache
def _is_inplace_method(name: str) -> bool:
    inplace = (name.endswith("_") and not name.startswith("__")) or name in {"__setitem__", "__delitem__"}
    inplace = inplace or (name.startswith("__i") and name.endswith("__") and name not in {"__invert__", "__iter__"})
    return inplace and name not in _NOT_A_WRITE


_FLAGS = {"out", "inplace"}
_WRITES_BY_NAME = {"embedding", "embedding_bag", "batch_norm", "instance_norm", "native_batch_norm"}


@functools.cache
def _pure_functions() -> frozenset[Any]:
    """The functions of the table that write nothing, unless one of ``_FLAGS`` is given by keyword."""
    return frozenset(function for function, spec in FUNCTIONS.items() if _is_pure(function, spec))


def _is_pure(target: Any, spec: OpSpec) -> bool:
    if target in _INPLACE_OPERATORS or "inplace" in spec.names:
        return False
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable
    return getattr(target, "__name__", None) not in _WRITES_BY_NAME and not isinstance(
        target, torch._ops.OpOverloadPacket | torch._ops.HigherOrderOperator
    )


def _written_by_module(node: fx.Node) -> Iterator[fx.Node]:
    """A module of torch writes its input where it says ``inplace``; any other may write all that it is given."""
    owner = node.graph.owning_module
    module = owner.get_submodule(str(node.target)) if owner is not None else None
    if module is None or not type(module).__module__.startswith("torch.nn."):
        yield from _nodes_in((node.args, node.kwargs))
    elif getattr(module, "inplace", False):
        yield from _nodes_in(node.args[:1])


def _written_by_name(node: fx.Node) -> Iterator[fx.Node]:
    """What functions write that say so neither by name nor by flag."""
    name = _name(node)
    if name in {"embedding", "embedding_bag"}:
        max_norm = node.kwargs.get("max_norm", node.args[3] if len(node.args) > 3 else None)
        if max_norm is not None:
            yield from _nodes_in(node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None))
    elif name in {"batch_norm", "instance_norm", "native_batch_norm"}:
        running = [node.kwargs.get("running_mean"), node.kwargs.get("running_var")]
        positions = (3, 4) if name == "native_batch_norm" or str(node.target).startswith("<built-in") else (1, 2)
        yield from _nodes_in((running, [a for i, a in enumerate(node.args) if i in positions]))


def _given_inplace(node: fx.Node, spec: OpSpec | None) -> bool:
    """Whether ``inplace`` is given by position, and is not False."""
    if len(node.args) < 2:
        return False
    if spec is not None:
        names = [name for name, _ in spec.params]
        at = names.index("inplace") if "inplace" in names else None
    else:
        at = _inplace_position(node.target)
    return at is not None and len(node.args) > at and node.args[at] is not False


def _written_by_schema(node: fx.Node, target: torch._ops.OpOverload) -> Iterator[fx.Node]:
    if not target._schema.is_mutable:
        return
    for i, argument in enumerate(target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
            yield from _nodes_in(value)


def _written_by_body(node: fx.Node, target: Any) -> Iterator[fx.Node]:
    if target.name() in _FUNCTIONALIZED and _REINPLACED not in node.meta:
        return
    body = body_of(node)
    if body is None or target.name() not in _PURE_BODIES:
        yield from _nodes_in((node.args, node.kwargs))
        return
    effects = Effects(body.graph)
    holders = [n for n in body.graph.nodes if n.op == "placeholder"]
    for holder, operand in zip(holders, node.args[1:], strict=False):
        if isinstance(operand, fx.Node) and effects.is_written(holder):
            yield operand


def body_of(node: fx.Node) -> fx.GraphModule | None:
    """The graph inside a higher-order op whose operands are its body's placeholders, in order."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.HigherOrderOperator):
        return None
    if target.name() not in _PURE_BODIES or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    owner = node.graph.owning_module
    body = getattr(owner, str(node.args[0].target), None) if owner is not None else None
    return body if isinstance(body, fx.GraphModule) else None


def _nodes_in(operand: Any) -> Iterator[fx.Node]:
    if isinstance(operand, fx.Node):
        yield operand
    elif isinstance(operand, tuple | list):
        for item in operand:
            yield from _nodes_in(item)
    elif isinstance(operand, Mapping):
        yield from _nodes_in(tuple(operand.values()))


def storages(node: fx.Node) -> Iterator[int]:
    """An identity for each storage that the example value of this node has."""
    value = node.meta.get("example_value", node.meta.get("val"))
    for tensor in value if isinstance(value, tuple | list) else (value,):
        if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
            try:
                yield tensor.untyped_storage()._cdata
            except (NotImplementedError, RuntimeError):  # a wrapper without storage of its own
                continue


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))
