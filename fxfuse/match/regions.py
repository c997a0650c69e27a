"""Finding the sites of a region: what the modules at certain paths computed, where it hangs together and is closed."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import networkx as nx
import torch
from torch import fx

from fxfuse.authoring.pattern import Pattern
from fxfuse.authoring.region import Region
from fxfuse.errors import OptionError
from fxfuse.match.finding import Found, find_sites
from fxfuse.match.gates import gate
from fxfuse.match.matching import Match
from fxfuse.paths import binding, filled
from fxfuse.view import LeafKind, Value, View
from fxfuse.view.leaves import stack_paths

Absolute = Callable[[str], str]


class RegionMatch(Match):
    """What the modules of a region computed in one place."""

    def __init__(
        self,
        view: View,
        region: Region,
        nodes: Sequence[fx.Node],
        outputs: Sequence[fx.Node],
        operands: Mapping[str, object],
    ) -> None:
        self.view = view
        self.pattern = region
        self.bound = {}
        self.siblings = {}
        self.sizes = {}
        self.variant = {}
        self.nodes = tuple(nodes)
        self.owned = frozenset(nodes)
        self.seen_through = ()
        self.staying = frozenset()
        self.captures = dict(operands)
        self.interior = [Value(str(n.target), {}, n, meta=view.meta(n)) for n in nodes]
        of = {v.node: v for v in self.interior}
        self.outputs = tuple(of[n] for n in outputs)
        self.root = self.outputs[-1]

    @property
    def returns_a_tuple(self) -> bool:
        """Whether a kernel for this site returns a tuple of tensors rather than one."""
        return len(self.outputs) > 1

    def weight_values(self) -> list[Value]:
        """The parameters and buffers that the region reads."""
        return [v for v in self.captured_values() if v.leaf is not None and v.leaf.kind in _WEIGHTS]


_WEIGHTS = (LeafKind.PARAMETER, LeafKind.BUFFER)


def sites_of(view: View, pattern: Pattern, absolute: Absolute = str, *, taken: Collection[fx.Node] = ()) -> list[Found]:
    """All sites of a pattern, whether it is given by structure or by paths; see `find_sites` and `find_regions`."""
    if isinstance(pattern, Region):
        return find_regions(view, pattern, absolute)
    return find_sites(view, pattern, taken=taken)


def find_regions(view: View, region: Region, absolute: Absolute) -> list[Found]:
    """All sites of a region in this graph, in graph order.

    Args:
        absolute: a module's path in this graph -> its path in the model, where the two differ.

    Raises:
        OptionError: what the modules computed is not connected, or is read outside before the last module.
    """
    found = []
    for bound, groups in _groups(view, region, absolute).items():
        nodes = [n for n in view.graph.nodes if any(n in group for group in groups)]
        where = ", ".join(filled(glob, bound) for glob in region.globs)
        if all(groups):
            operands = dict(_operands(view, nodes, _common(region, bound), absolute))
            match = _closed(view, region, nodes, groups, where, operands)
            failure = gate(match)
            site = Found(region, match.root, match, failure, match.nodes, {}, len(nodes), len(nodes))
            found.append(site)
    return found


def _groups(view: View, region: Region, absolute: Absolute) -> dict[tuple[str, ...], list[set[fx.Node]]]:
    """What the wildcards stand for -> the nodes of each glob's module."""
    globs = region.globs
    groups: dict[tuple[str, ...], list[set[fx.Node]]] = {}
    known: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    for node in view.graph.nodes:
        if not node.op.startswith("call_"):
            continue  # Dynamo says of a parameter, too, in whose forward it was read
        for path in stack_paths(node):
            if path not in known:
                full = absolute(path)
                known[path] = [(i, b) for i, glob in enumerate(globs) if (b := binding(glob, full)) is not None]
            for i, bound in known[path]:
                groups.setdefault(bound, [set() for _ in globs])[i].add(node)
    return groups


def _closed(
    view: View,
    region: Region,
    nodes: list[fx.Node],
    groups: list[set[fx.Node]],
    where: str,
    operands: Mapping[str, object],
) -> RegionMatch:
    inside = set(nodes)
    tensors = [n for n in nodes if isinstance(view.meta(n), torch.Tensor)]
    outputs = []
    for node in tensors:
        readers = [u for u in node.users if u not in inside]
        if not readers:
            continue
        if node not in groups[-1]:
            reader = readers[0]
            who = "returned by the graph" if reader.op == "output" else f"read by {reader.name} ({_path(reader)})"
            raise OptionError(
                f"region {region.name!r} at {where} is not closed: {node.name} ({_path(node)}) is {who}, outside the "
                f"region. Only what the last module returns may be read outside."
            )
        outputs.append(node)
    graph = nx.Graph()
    graph.add_nodes_from(tensors)
    graph.add_edges_from((source, n) for n in tensors for source in n.all_input_nodes if source in graph)
    if tensors and not nx.is_connected(graph):
        pieces = sorted(
            (min(map(view.effects.order.__getitem__, piece)), piece) for piece in nx.connected_components(graph)
        )
        names = ["{" + ", ".join(sorted({_path(n) for n in piece})) + "}" for _, piece in pieces[:3]]
        raise OptionError(
            f"region {region.name!r} at {where} is not connected: nothing leads from {names[0]} to {names[1]} without "
            f"leaving the region. The modules are not adjacent in the graph."
        )
    if not outputs:
        raise OptionError(f"region {region.name!r} at {where} computes nothing that anything reads.")
    return RegionMatch(view, region, nodes, outputs, operands)


def _operands(view: View, nodes: Sequence[fx.Node], root: str, absolute: Absolute) -> Iterator[tuple[str, object]]:
    inside = set(nodes)
    read = dict.fromkeys(s for n in nodes for s in n.all_input_nodes if s not in inside)
    inputs = []
    for node in read:
        value = view.value(node)
        leaf = value.leaf
        if leaf is not None and leaf.kind in _WEIGHTS:
            yield re.sub(r"\W+", "_", absolute(leaf.path).removeprefix(root)).strip("_"), value
        elif isinstance(view.meta(node), torch.Tensor):
            inputs.append(value if value.node is node else Value("input", {}, node, meta=view.meta(node)))
    for place, value in enumerate(inputs, start=1):
        yield ("x" if len(inputs) == 1 else f"x_{place}"), value
    literals = (a for n in nodes for a in (*n.args, *n.kwargs.values()))
    yield "constants", tuple(a for a in literals if isinstance(a, float))


def _common(region: Region, bound: tuple[str, ...]) -> str:
    """The path that the region's modules have in common, with its final dot."""
    split = [filled(glob, bound).split(".")[:-1] for glob in region.globs]
    shared = []
    for names in zip(*split, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return "".join(f"{name}." for name in shared)


def _path(node: fx.Node) -> str:
    paths = stack_paths(node)
    return paths[-1] if paths else "no module"
