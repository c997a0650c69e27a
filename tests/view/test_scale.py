"""Reading a graph costs the same per node however long it is, and however it is asked for."""

from __future__ import annotations

import gc
import time

import torch
from torch import fx

from fxfuse.view import View


def chain(length: int) -> fx.Graph:
    """A chain of additions, products and norms: each rule looks at what came before."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    at = x
    for i in range(length):
        target = (torch.add, torch.mul, torch.sqrt, torch.sigmoid)[i % 4]
        at = graph.call_function(target, (at, x) if i % 4 < 2 else (at,))
    graph.output(at)
    return graph


def seconds_per_node(length: int) -> float:
    graph = chain(length)
    last = next(reversed(graph.nodes)).args[0]
    begin = time.process_time()
    view = View(graph)
    view.value(last)  # the last one first
    for value in view.find("sigmoid"):
        view.readers(value)
    return (time.process_time() - begin) / length


def test_a_long_graph_costs_no_more_per_node() -> None:
    gc.disable()  # as the engine does while it reads
    try:
        short = min(seconds_per_node(2_000) for _ in range(9))
        assert min(seconds_per_node(60_000) for _ in range(2)) < 2 * short
    finally:
        gc.enable()
