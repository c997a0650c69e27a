"""A divided graph as something to call: each kind compiled once, its calls one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import fx

from fxfuse import compat
from fxfuse.reuse.hazards import LeftWhole, lies_for_sure, strides_of
from fxfuse.reuse.labels import attribute
from fxfuse.reuse.plan import Kind, Plan
from fxfuse.reuse.segments import outline

Compiled = Callable[..., Any]
Compiler = Callable[[fx.GraphModule, list[Any]], Compiled]
Strides = tuple[int, ...] | Callable[[Sequence[Any]], tuple[int, ...]]
Pick = Callable[[Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True)
class Divided:
    """The calls of a graph, and what compiling each of its kinds took; None for those that run as written."""

    run: Compiled
    seconds: tuple[float | None, ...]


def compile_divided(gm: fx.GraphModule, plan: Plan, compiler: Compiler) -> Divided:
    """Compile each kind of a plan.

    Raises:
        LeftWhole: a value cannot cross a border.
    """
    mode = compat.compile_mode(n.meta.get("example_value") for n in gm.graph.find_nodes(op="placeholder"))
    if mode is None:
        raise LeftWhole("its inputs are no fake tensors")
    promised = _promised(plan)  # before anything is compiled
    compiled: list[Compiled] = []
    seconds: list[float | None] = []
    for number, kind in enumerate(plan.kinds):
        if kind.as_written:
            compiled.append(_as_written(kind, plan, f"Stretch{number}"))
            seconds.append(None)
            continue
        start = time.perf_counter()
        compiled.append(_compile(kind, plan, mode, compiler, f"Region{number}"))
        seconds.append(time.perf_counter() - start)
    return Divided(_program(gm, plan, compiled, promised), tuple(seconds))


def _compile(kind: Kind, plan: Plan, mode: Any, compiler: Compiler, name: str) -> Compiled:
    ground = plan.ground
    assert ground is not None
    module = outline(kind.first, kind.gives, ground.same, name)
    with compat.isolated_tracing(mode):
        examples = [_example(read.meta["example_value"], read in ground.grads, mode) for read in kind.first.reads]
        return compiler(module, examples)


def _as_written(kind: Kind, plan: Plan, name: str) -> Compiled:
    ground = plan.ground
    assert ground is not None
    module = outline(kind.first, kind.gives, ground.same, name)
    for node in module.graph.nodes:
        node.meta.clear()  # fake tensors, which lead to the model's parameters
    run: Compiled = module.forward
    return run


def _example(value: Any, needs_grad: bool, mode: Any) -> Any:
    """A fake tensor of its own: no alias of another, nothing behind it in autograd."""
    if not isinstance(value, torch.Tensor):
        return value
    with mode:
        return torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device=value.device, requires_grad=needs_grad
        )


def _program(gm: fx.GraphModule, plan: Plan, compiled: Sequence[Compiled], promised: Mapping[fx.Node, Any]) -> Compiled:
    ground = plan.ground
    assert ground is not None
    holders = gm.graph.find_nodes(op="placeholder")
    place = {node: i for i, node in enumerate(holders)}
    symbols = {name: place[node] for name, node in ground.symbols.items()}
    constants = [attribute(n) for n in ground.last_use if n.op == "get_attr"]
    for node in ground.last_use:
        if node.op == "get_attr":
            place[node] = len(place)
    returned = gm.graph.output_node().args[0]
    if not isinstance(returned, tuple | list) or not all(isinstance(n, fx.Node) for n in returned):
        raise LeftWhole("it returns something that is no flat list of tensors")
    results = [ground.same.get(n, n) for n in returned if isinstance(n, fx.Node)]
    last: dict[fx.Node, int] = {}
    for step, (one, _) in enumerate(plan.calls):
        last.update(dict.fromkeys((*one.reads, *one.nodes), step))
    steps = []
    for step, (one, number) in enumerate(plan.calls):
        gives = [one.nodes[i] for i in plan.kinds[number].gives]
        for node in gives:
            place.setdefault(node, len(place))
        wanted = set(one.gives)
        puts = [
            (at, place[one.nodes[i]], _told(promised.get(one.nodes[i]), symbols))
            for at, i in enumerate(plan.kinds[number].gives)
            if i in wanted
        ]
        done = [
            place[n]
            for n in one.reads
            if last[n] == step and n.op not in {"placeholder", "get_attr"} and n not in results
        ]
        steps.append((compiled[number], _picker([place[n] for n in one.reads]), tuple(puts), tuple(done)))
    rest = [None] * (len(place) - len(holders) - len(constants))
    pick_results = _picker([place[n] for n in results])

    def run(*args: Any) -> Any:
        held: list[Any] = [*args, *constants, *rest]
        for call, pick, puts, done in steps:
            given = call(*pick(held))
            for at, into, strides in puts:
                value = given[at]
                held[into] = value if strides is None or value.stride() == strides else _laid_out(value, strides, held)
            given = None
            for gone in done:
                held[gone] = None
        return pick_results(held)

    return run


def _promised(plan: Plan) -> dict[fx.Node, list[Any]]:
    """The strides that the readers of each value were compiled for, which an inner compiler need not keep to.

    Raises:
        LeftWhole: strides that the sizes of a call do not tell.
    """
    promised: dict[fx.Node, list[Any]] = {}
    for node in (read for one, _ in plan.calls for read in one.reads if read.op not in {"placeholder", "get_attr"}):
        value = node.meta["example_value"]
        if isinstance(value, torch.Tensor):
            if not lies_for_sure(value):
                raise LeftWhole(f"{node.name} would cross a border with the strides {tuple(value.stride())}")
            promised[node] = strides_of(value)
    return promised


def _told(strides: list[Any] | None, symbols: Mapping[str, int]) -> Strides | None:
    """Strides as numbers, or as a function of all that is held, where symbols of the graph are in them."""
    if strides is None:
        return None
    names = sorted({str(symbol) for part in strides if type(part) is not int for symbol in part.free_symbols})
    if not names:
        return tuple(map(int, strides))
    import sympy

    of_sizes = sympy.lambdify([sympy.Symbol(name) for name in names], [sympy.sympify(str(part)) for part in strides])
    places = [symbols[name] for name in names]
    return lambda held: tuple(of_sizes(*(held[place] for place in places)))


def _laid_out(value: torch.Tensor, strides: Strides, held: Sequence[Any]) -> torch.Tensor:
    """The value in these strides: itself, where it lies so; a size of one has any stride."""
    wanted = strides if isinstance(strides, tuple) else strides(held)
    if all(size == 1 or a == b for size, a, b in zip(value.shape, value.stride(), wanted, strict=True)):
        return value
    return torch.empty_strided(value.shape, wanted, dtype=value.dtype, device=value.device).copy_(value)


def _picker(places: Sequence[int]) -> Pick:
    if len(places) > 1:
        return itemgetter(*places)
    return lambda held: tuple(held[i] for i in places)
