"""`Pattern.explain`: one pattern asked about one graph, or one place in it, without options, kernels or rewrites."""

from __future__ import annotations

import difflib
import time
from collections.abc import Collection

import torch
from torch import fx

import fxfuse
from fxfuse.authoring import Pattern
from fxfuse.describe import site_record
from fxfuse.errors import OptionError
from fxfuse.match import Failure, Found, place_around, select, sites_of
from fxfuse.report import Report
from fxfuse.view import View
from fxfuse.view.leaves import innermost_roots, leaves_of, stack_path, stack_paths

_NEAREST = 5


def explain_pattern(
    pattern: Pattern, program: fx.GraphModule | torch.export.ExportedProgram, at: fx.Node | str | None = None
) -> Report:
    """A report of the pattern's matches and near misses in a graph, or of what is at one place of it.

    Raises:
        OptionError: ``at`` is nothing in this graph.
    """
    start = time.perf_counter()
    nodes = _nodes_at(program.graph, at) if at is not None else None
    view = View(program.graph, leaves=leaves_of(program))
    found = select(sites_of(view, pattern))
    if nodes is not None:
        found = [site for site in found if not nodes.isdisjoint(site.nodes)] or [_nearest(view, pattern, nodes)]
    elif not found:  # one pattern was asked about, so a place that is far from it is an answer, too
        place = place_around(view, pattern, view.everything())
        found = [place] if place is not None else []
    sites = []
    for site in found:
        outcome = "matched" if site.reason is None else "missed"
        modules = innermost_roots([stack_path(n) for n in site.nodes])
        sites.append(site_record(site, site.reason, modules, outcome))
    versions = {"fxfuse": fxfuse.__version__, "torch": torch.__version__}
    seconds = {"match": time.perf_counter() - start}
    nodes_in_all = len(program.graph.nodes)
    return Report(tuple(sites), nodes=nodes_in_all, versions=versions, seconds=seconds, only_matched=True)


def _nodes_at(graph: fx.Graph, at: fx.Node | str) -> set[fx.Node]:
    if isinstance(at, fx.Node):
        if at.graph is not graph:
            raise OptionError(f"at={at.name!r} is a node of another graph.")
        return {at}
    named: dict[str, set[fx.Node]] = {}
    for node in graph.nodes:
        if node.op not in {"placeholder", "output"}:
            named.setdefault(node.name, set()).add(node)
            for path in stack_paths(node):
                while path:
                    named.setdefault(path, set()).add(node)
                    path = path.rpartition(".")[0]
    if at not in named:
        near = difflib.get_close_matches(str(at), named, n=_NEAREST, cutoff=0.5)
        hint = f"; nearest: {', '.join(map(repr, near))}" if near else ""
        raise OptionError(f"at={at!r} is neither a node nor a module of this graph{hint}.")
    return named[at]


def _nearest(view: View, pattern: Pattern, nodes: Collection[fx.Node]) -> Found:
    """How far the pattern got at nodes where it is not even nearly."""
    order = view.effects.order
    at = sorted(nodes, key=order.__getitem__)
    values = {id(value): value for value in map(view.value, at)}
    place = place_around(view, pattern, values.values())
    if place is not None:
        return place
    value = view.value(at[-1])
    wanted = "an operation of the pattern"
    reason = Failure("OP", wanted, value if value.leaf is None else "an input of the graph", operand=value)
    return Found(pattern, value, None, reason, value.nodes, {}, 0, pattern.size)
