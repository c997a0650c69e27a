"""A stretch of a graph as a graph of its own: what it reads, what others read of it, and what it computes."""

from __future__ import annotations

import copy
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxfuse.reuse.labels import attribute, facts, operation

_ARITHMETIC = {"add", "sub", "mul", "truediv", "div", "matmul", "__add__", "__mul__", "__rmul__"}


@dataclass(frozen=True)
class Segment:
    """Nodes that follow one another in a graph.

    ``reads`` are the nodes whose values it takes, in the order in which it first reads them; ``gives`` are the places
    of those of its own nodes that somebody after it reads.
    """

    nodes: tuple[fx.Node, ...]
    reads: tuple[fx.Node, ...]
    gives: tuple[int, ...]


def segment(nodes: Sequence[fx.Node], symbols: Mapping[str, fx.Node], same: Mapping[fx.Node, fx.Node]) -> Segment:
    """The segment of these nodes.

    Args:
        symbols: where the graph has each symbolic size as an input; a segment takes those that its shapes have.
        same: results of writes in place, and the inputs that they are.
    """
    held = _with_bodies(nodes)
    inside = set(held)
    reads: dict[fx.Node, None] = {}
    for node in held:
        for operand in node.all_input_nodes:
            if operand not in inside:
                reads[same.get(operand, operand)] = None
    wanted = dict.fromkeys(name for node in (*reads, *held) for name in free_symbols(node.meta.get("example_value")))
    first = {symbols[name]: None for name in wanted if name in symbols}
    gives = [i for i, node in enumerate(held) if node not in same and any(user not in inside for user in node.users)]
    return Segment(held, tuple({**first, **reads}), tuple(gives))


def _with_bodies(nodes: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
    """The nodes with the graphs that they run, wherever these were read."""
    held: dict[fx.Node, None] = {}
    for node in nodes:
        held.update((operand, None) for operand in node.all_input_nodes if reads_body(operand))
        held[node] = None
    return tuple(held)


def reads_body(node: fx.Node) -> bool:
    """Whether this node only names the graph of a higher-order op."""
    return node.op == "get_attr" and isinstance(attribute(node), fx.GraphModule)


def free_symbols(value: Any) -> tuple[str, ...]:
    """The symbols in the sizes and strides of a value, by name."""
    if isinstance(value, torch.SymInt):
        return tuple(sorted(map(str, value.node.expr.free_symbols)))
    if isinstance(value, torch.Tensor):
        parts = (*value.shape, *value.stride()) if value.layout is torch.strided else tuple(value.shape)
        return tuple(name for part in parts if not isinstance(part, int) for name in free_symbols(part))
    if isinstance(value, tuple | list):
        return tuple(name for item in value for name in free_symbols(item))
    return ()


def key(made: Segment, grads: Collection[fx.Node], same: Mapping[fx.Node, fx.Node]) -> Hashable:
    """What two segments must have in common for one compiled graph to serve both.

    Args:
        grads: the nodes whose values require gradients.
    """
    places: dict[fx.Node, Hashable] = {node: ("read", i) for i, node in enumerate(made.reads)}
    places.update({node: ("own", i) for i, node in enumerate(made.nodes)})
    for result, root in same.items():
        places.setdefault(result, places.get(root))

    def told(node: fx.Node) -> Hashable:
        return facts(node.meta.get("example_value")), node in grads

    taken = tuple(map(told, made.reads))
    joined = _gradient_comes_from_inside(made, grads)
    differentiable = tuple(i for i in made.gives if made.nodes[i] in grads and made.nodes[i] not in joined)
    return taken, differentiable, tuple((operation(node, places.__getitem__), told(node)) for node in made.nodes)


def _gradient_comes_from_inside(made: Segment, grads: Collection[fx.Node]) -> set[fx.Node]:
    """The nodes whose gradient has a part from within the segment, whoever reads them behind it.

    A compiled segment takes a result that nobody reads for one whose gradient is zero. Added to such a part that
    changes nothing; alone it would be multiplied by a slope that may be infinite. So the last layer, whose residual
    sum only its own norm reads, is like the others.
    """
    given = {made.nodes[i] for i in made.gives}
    reached: set[fx.Node] = set()
    joined: set[fx.Node] = set()
    for node in reversed(made.nodes):
        if node not in grads:
            continue
        if any(user in reached and _hands_gradient_back(user, node) for user in node.users):
            joined.add(node)
        if node in joined or node in given:
            reached.add(node)
    return joined


def _hands_gradient_back(reader: fx.Node, node: fx.Node) -> bool:
    """Whether a differentiable operation surely has a gradient for this operand: PyTorch's own have for their first,
    arithmetic for each; of a further one others may ask the shape alone (``expand_as``)."""
    target = reader.target
    if isinstance(target, torch._ops.HigherOrderOperator):
        return False
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket) and "aten" not in str(target):
        return False
    name = str(getattr(target, "__name__", target))
    taken = reader.args if name in _ARITHMETIC else reader.args[:1]
    return node in taken and not name.endswith("_")


def outline(made: Segment, gives: Sequence[int], same: Mapping[fx.Node, fx.Node], name: str) -> fx.GraphModule:
    """The segment as a module: its reads are its inputs, the values at ``gives`` a tuple that it returns."""
    owner = made.nodes[0].graph.owning_module
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    bodies: dict[str, Any] = {}
    for i, read in enumerate(made.reads):
        copies[read] = graph.placeholder(f"read_{i}")
        copies[read].meta = {k: read.meta[k] for k in ("example_value",) if k in read.meta}
    for result, root in same.items():
        if root in copies:
            copies[result] = copies[root]
    for node in made.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].meta = copy.copy(node.meta)
        if node.op == "get_attr":
            bodies[str(node.target)] = attribute(node)
    graph.output(tuple(copies[made.nodes[i]] for i in gives))
    return fx.GraphModule(_holder(owner, bodies), graph, class_name=name)


def _holder(owner: torch.nn.Module | None, bodies: Mapping[str, Any]) -> torch.nn.Module:
    holder = torch.nn.Module()
    for path, held in bodies.items():
        *folders, last = path.split(".")
        place = holder
        for folder in folders:
            if not hasattr(place, folder):
                setattr(place, folder, torch.nn.Module())
            place = getattr(place, folder)
        setattr(place, last, held)
    return holder
