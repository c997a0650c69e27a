"""A divided graph as something to call: each kind compiled once, its calls one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import fx

from fxfuse import compat
from fxfuse.reuse.hazards import LeftWhole
from fxfuse.reuse.labels import attribute
from fxfuse.reuse.plan import Kind, Plan
from fxfuse.reuse.segments import outline

Compiled = Callable[..., Any]
Compiler = Callable[[fx.GraphModule, list[Any]], Compiled]
Pick = Callable[[Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True)
class Divided:
    """The calls of a graph, and what compiling each of its kinds took."""

    run: Compiled
    seconds: tuple[float, ...]


def compile_divided(gm: fx.GraphModule, plan: Plan, compiler: Compiler) -> Divided:
    """Compile each kind of a plan.

    Raises:
        LeftWhole: a compiled stretch does not give what the next one was promised.
    """
    mode = compat.compile_mode(n.meta.get("example_value") for n in gm.graph.find_nodes(op="placeholder"))
    if mode is None:
        raise LeftWhole("its inputs are no fake tensors")
    compiled, seconds = [], []
    for number, kind in enumerate(plan.kinds):
        start = time.perf_counter()
        compiled.append(_compile(kind, plan, mode, compiler, f"Region{number}"))
        seconds.append(time.perf_counter() - start)
    return Divided(_program(gm, plan, compiled), tuple(seconds))


def _compile(kind: Kind, plan: Plan, mode: Any, compiler: Compiler, name: str) -> Compiled:
    ground = plan.ground
    assert ground is not None
    module = outline(kind.first, kind.gives, ground.same, name)
    with compat.isolated_tracing(mode), compat.output_strides() as strides:
        examples = [_example(read.meta["example_value"], read in ground.grads, mode) for read in kind.first.reads]
        compiled = compiler(module, examples)
    for node in module.graph.nodes:  # fake tensors lead to weak references on the model's parameters
        node.meta.clear()
    promised = [kind.first.nodes[place].meta["example_value"] for place in kind.gives]
    for value, given in zip(promised, strides or (), strict=False):
        if given is None or not isinstance(value, torch.Tensor):
            continue
        if tuple(map(str, given)) != tuple(map(str, value.stride())) and not _one_layout(value, given):
            raise LeftWhole(f"a compiled region gives strides {tuple(given)} for {tuple(value.stride())}")
    return compiled


def _one_layout(value: torch.Tensor, given: Sequence[Any]) -> bool:
    """Whether strides differ only where a size of one makes them meaningless, or are expressions (told when run)."""
    if not all(isinstance(s, int) for s in (*value.shape, *value.stride())):
        return True
    return all(size == 1 or str(a) == str(b) for size, a, b in zip(value.shape, given, value.stride(), strict=False))


def _example(value: Any, needs_grad: bool, mode: Any) -> Any:
    """A fake tensor of its own: no alias of another, nothing behind it in autograd."""
    if not isinstance(value, torch.Tensor):
        return value
    with mode:
        return torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device=value.device, requires_grad=needs_grad
        )


def _program(gm: fx.GraphModule, plan: Plan, compiled: Sequence[Compiled]) -> Compiled:
    ground = plan.ground
    assert ground is not None
    holders = gm.graph.find_nodes(op="placeholder")
    place = {node: i for i, node in enumerate(holders)}
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
            (at, place[one.nodes[i]]) for at, i in enumerate(plan.kinds[number].gives) if i in wanted
        ]  # fmt: skip
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
            for at, into in puts:
                held[into] = given[at]
            given = None
            for gone in done:
                held[gone] = None
        return pick_results(held)

    return run


def _picker(places: Sequence[int]) -> Pick:
    if len(places) > 1:
        return itemgetter(*places)
    return lambda held: tuple(held[i] for i in places)
