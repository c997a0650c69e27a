"""One-edit mutants of a graph: programs that differ from it in one place, which a pattern must not be found in.

An edit is proposed without knowing whether it changes anything. Whether it does is for `refusals` to say: a program
that computes the same bits for several inputs, and breaks no gate, is no mutant.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxfuse.checking.sketch import META, Sketch
from fxfuse.view import ops

Apply = Callable[[Sketch, fx.Node], "fx.Node | None"]


class Gate(Enum):
    """What an edit breaks besides the numbers, so that a match is wrong whatever it computes."""

    NONE = "none"
    READ = "read"  # the edited node is read elsewhere: no site may take it away
    NO_PARAMETER = "no parameter"  # the edited node is none any more, or changes: no site may capture it


@dataclass(frozen=True)
class Edit:
    """One edit at one node of the original graph. ``apply`` gets a copy of the graph and the node's copy."""

    kind: str
    what: str
    node: fx.Node
    apply: Apply
    gate: Gate = Gate.NONE


UNARY = (torch.neg, torch.abs, torch.exp, torch.sigmoid, torch.tanh, F.relu, F.silu, F.gelu, torch.rsqrt, torch.sqrt,
         torch.square, torch.reciprocal, torch.cos, torch.sin)  # fmt: skip
BINARY = (torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum)
REDUCTIONS = (torch.mean, torch.sum, torch.amax)
SIMILAR = (UNARY, BINARY, REDUCTIONS)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_LITERALS: dict[Any, tuple[Any, ...]] = {"none": ("tanh",), "tanh": ("none",)}


def edits(graph: fx.Graph, parameters: frozenset[str], chosen: random.Random) -> Iterator[Edit]:
    """Every edit of a graph, with random picks where there are many of a kind.

    Args:
        parameters: names of the placeholders that the pattern wants to be parameters.
    """
    calls = [n for n in graph.nodes if n.op.startswith("call_")]
    outputs = set(graph.output_node().all_input_nodes)
    for node in calls:
        yield from _other_ops(node, chosen)
        yield from _other_literals(node)
        yield from _other_operands(node, graph, chosen)
        yield from _casts(node, chosen)
        if node not in outputs:
            yield from _readers(node)
    for node in [*graph.find_nodes(op="placeholder"), *calls]:
        if _is_tensor(node) and node.users:
            yield from _writes(node, parameters, outputs)
    for node in graph.find_nodes(op="placeholder"):
        if str(node.target) in parameters:
            yield from _computed(node)


def _other_ops(node: fx.Node, chosen: random.Random) -> Iterator[Edit]:
    spec = ops.spec_of(node)
    args = ops.bind(spec, node.args, node.kwargs) if spec is not None else None
    if spec is not None and args is not None:
        own = {f for f, known in ops.FUNCTIONS.items() if known.name == spec.name}
        for family in SIMILAR:
            if own.intersection(family):
                others = [f for f in family if f not in own]
                for other in chosen.sample(others, min(3, len(others))):
                    yield Edit("op", f"{other.__name__} for {spec.name}", node, _as(other, dict(args)))
    if _is_float(node):
        yield Edit("op", f"{node.name} negated", node, _behind(lambda s, n: s.function(torch.neg, n)))
        yield Edit("op", f"abs of {node.name}", node, _behind(lambda s, n: s.function(torch.abs, n)))
        yield Edit("op", f"1.5 times {node.name}", node, _behind(lambda s, n: s.function(torch.mul, n, 1.5)))


def _as(function: Callable[..., Any], args: dict[str, Any]) -> Apply:
    def apply(sketch: Sketch, node: fx.Node) -> fx.Node:
        own = fx.map_arg(dict(args), sketch.mapping.__getitem__)
        reduction = {k: own[k] for k in ("dim", "keepdim") if k in own} if function in REDUCTIONS else {}
        operands = [own[k] for k in ("input", "other") if k in own]
        return _replaced(sketch, node, lambda: sketch.function(function, *operands, **reduction))

    return apply


def _replaced(sketch: Sketch, node: fx.Node, make: Callable[[], fx.Node]) -> fx.Node:
    with sketch.before(node):
        made = make()
    node.replace_all_uses_with(made)
    return made


def _behind(make: Callable[[Sketch, fx.Node], fx.Node]) -> Apply:
    """What ``make`` computes of a node, read in its place by all its readers."""

    def apply(sketch: Sketch, node: fx.Node) -> fx.Node:
        readers = list(node.users)
        with sketch.after(node):
            made = make(sketch, node)
        inserted = set(_inputs_up_to(made, node))
        for reader in readers:
            if reader not in inserted:
                reader.replace_input_with(node, made)
        return made

    return apply


def _inputs_up_to(node: fx.Node, stop: fx.Node) -> Iterator[fx.Node]:
    yield node
    for operand in node.all_input_nodes:
        if operand is not stop:
            yield from _inputs_up_to(operand, stop)


def _other_literals(node: fx.Node) -> Iterator[Edit]:
    places = [*((i, a) for i, a in enumerate(node.args)), *node.kwargs.items()]
    for key, value in places:
        for path, leaf in _leaves(value):
            for other in _instead(leaf):
                what = f"{other} for {leaf} in {node.name}"
                yield Edit("literal", what, node, _with(key, path, other))
    spec = ops.spec_of(node)
    args = (ops.bind(spec, node.args, node.kwargs) if spec is not None else None) or {}
    for name, default in spec.params if spec is not None and args else ():
        if name not in args and isinstance(default, bool | str) and default in (False, True, "none"):
            for other in _instead(default):
                yield Edit("literal", f"{name}={other} in {node.name}", node, _with(name, (), other))


def _leaves(value: Any, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Any]]:
    if isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from _leaves(item, (*path, i))
    elif isinstance(value, bool | int | float | str) and not isinstance(value, torch.dtype):
        yield path, value


def _instead(value: Any) -> tuple[Any, ...]:
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1, value - 1)
    if isinstance(value, float):
        return (value * 2 + 1,)
    return _LITERALS.get(value, ())


def _with(key: Any, path: tuple[int, ...], other: Any) -> Apply:
    def apply(sketch: Sketch, node: fx.Node) -> fx.Node:
        if isinstance(key, int):
            args = list(node.args)
            args[key] = _put(args[key], path, other)
            node.args = tuple(args)
        else:
            node.kwargs = {**node.kwargs, key: _put(node.kwargs.get(key), path, other)}
        return node

    return apply


def _put(value: Any, path: tuple[int, ...], other: Any) -> Any:
    if not path:
        return other
    items = list(value)
    items[path[0]] = _put(items[path[0]], path[1:], other)
    return tuple(items)


def _other_operands(node: fx.Node, graph: fx.Graph, chosen: random.Random) -> Iterator[Edit]:
    order = list(graph.nodes)
    earlier = order[: order.index(node)]
    tensors = [n for n in node.all_input_nodes if _is_tensor(n)]
    for operand in tensors:
        like = [n for n in earlier if n is not operand and _is_tensor(n) and _kind(n) == _kind(operand)]
        for other in chosen.sample(like, min(3, len(like))):
            yield Edit("operand", f"{other.name} for {operand.name} in {node.name}", node, _reading(operand, other))
        if len(operand.meta[META].shape) == 2:
            turned = _turned(operand)
            yield Edit("operand", f"{operand.name} transposed in {node.name}", node, turned)
    if len(tensors) == 2:
        yield Edit("operand", f"operands of {node.name} swapped", node, _swapped(*tensors))


def _reading(operand: fx.Node, other: fx.Node) -> Apply:
    def apply(sketch: Sketch, node: fx.Node) -> fx.Node:
        node.replace_input_with(sketch.mapping[operand], sketch.mapping[other])
        return node

    return apply


def _turned(operand: fx.Node) -> Apply:
    def apply(sketch: Sketch, node: fx.Node) -> fx.Node:
        with sketch.before(node):
            made = sketch.method("t", sketch.mapping[operand])
        node.replace_input_with(sketch.mapping[operand], made)
        return node

    return apply


def _swapped(a: fx.Node, b: fx.Node) -> Apply:
    def apply(sketch: Sketch, node: fx.Node) -> fx.Node:
        swap = {sketch.mapping[a]: sketch.mapping[b], sketch.mapping[b]: sketch.mapping[a]}
        node.args = fx.map_arg(node.args, lambda n: swap.get(n, n))
        node.kwargs = fx.map_arg(node.kwargs, lambda n: swap.get(n, n))
        return node

    return apply


def _casts(node: fx.Node, chosen: random.Random) -> Iterator[Edit]:
    if not _is_float(node):
        return
    dtype = node.meta[META].dtype
    other = chosen.choice([d for d in DTYPES if d is not dtype])
    yield Edit("cast", f"{node.name} as {other}", node, _behind(lambda s, n: s.method("to", n, other)))
    rounded = chosen.choice([d for d in (torch.bfloat16, torch.float16) if d is not dtype])

    def through(sketch: Sketch, n: fx.Node) -> fx.Node:
        narrow = sketch.method("to", n, rounded)
        with sketch.after(narrow):
            return sketch.method("to", narrow, dtype)

    yield Edit("cast", f"{node.name} rounded to {rounded}", node, _behind(through))
    spec = ops.spec_of(node)
    if spec is None or spec.name != "to" or not node.all_input_nodes:
        return
    source = node.all_input_nodes[0]
    if source.meta[META].dtype is not dtype:

        def removed(sketch: Sketch, n: fx.Node) -> fx.Node:
            n.replace_all_uses_with(sketch.mapping[source])
            return sketch.mapping[source]

        yield Edit("cast", f"{node.name} removed", node, removed)
    for wanted in DTYPES:
        if wanted not in (dtype, source.meta[META].dtype):
            yield Edit("cast", f"{node.name} to {wanted} instead of {dtype}", node, _cast_to(source, wanted))


def _cast_to(source: fx.Node, dtype: torch.dtype) -> Apply:
    def apply(sketch: Sketch, node: fx.Node) -> fx.Node:
        return _replaced(sketch, node, lambda: sketch.method("to", sketch.mapping[source], dtype))

    return apply


def _readers(node: fx.Node) -> Iterator[Edit]:
    def returned(sketch: Sketch, n: fx.Node) -> fx.Node:
        _return(sketch, n)
        return n

    def read(sketch: Sketch, n: fx.Node) -> fx.Node:
        with sketch.after(n):
            made = sketch.function(torch.atan, n)
        _return(sketch, made)
        return n

    yield Edit("reader", f"{node.name} returned", node, returned, Gate.READ)
    if _is_float(node):
        yield Edit("reader", f"{node.name} read by atan", node, read, Gate.READ)


def _return(sketch: Sketch, node: fx.Node) -> None:
    output = sketch.graph.output_node()
    results: Any = output.args[0]
    output.args = ((*results, node),)


def _writes(node: fx.Node, parameters: frozenset[str], outputs: set[fx.Node]) -> Iterator[Edit]:
    """``add_`` to the node: as soon as it is there, before its last reader, and before the results are computed."""
    is_parameter = str(node.target) in parameters and node.op == "placeholder"
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    readers = sorted((u for u in node.users if u.op != "output"), key=order.__getitem__)
    last = min((o for o in outputs if o is not node), key=order.__getitem__, default=None)
    places = {
        "at once": readers[:1],
        "before its last reader": readers[-1:],
        "before the result": [last] if last else [],
    }
    seen: set[Any] = set()
    for where, place in places.items():
        if not place or place[0] in seen or order[place[0]] <= order[node]:
            continue
        seen.add(place[0])
        for name, through in (("", False), (" through a view", True)):
            what = f"{node.name} written{name} {where}"
            yield Edit("write", what, node, _write(place[0], through), Gate.NO_PARAMETER if is_parameter else Gate.NONE)


def _write(place: fx.Node, through_view: bool) -> Apply:
    def apply(sketch: Sketch, node: fx.Node) -> fx.Node:
        with sketch.before(sketch.mapping[place]):
            target = sketch.method("detach", node) if through_view else node
            target = sketch.method("view", target, target.meta[META].shape) if through_view else target
            sketch.keep(sketch.method("add_", target, 1))
        return node

    return apply


def _computed(node: fx.Node) -> Iterator[Edit]:
    yield Edit("parameter", f"{node.name} computed", node, _behind(lambda s, n: s.method("neg", n)), Gate.NO_PARAMETER)


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get(META), torch.Tensor)


def _is_float(node: fx.Node) -> bool:
    return _is_tensor(node) and node.meta[META].is_floating_point()


def _kind(node: fx.Node) -> tuple[Any, ...]:
    example = node.meta[META]
    return tuple(example.shape), example.dtype
