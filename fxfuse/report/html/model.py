"""What the page shows, as data: the report's record with nodes by number, and a drawing for each form of site."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from fxfuse.report import packing
from fxfuse.report.html.layout import layered
from fxfuse.report.parts import GraphRecord, NodeRecord
from fxfuse.report.record import ReasonRecord, Report, Site
from fxfuse.report.text import group_key, merge_paths

_CALL = re.compile(r"^(?:.*\.)?([A-Za-z_]\w*)\(")
_INFIX = re.compile(r"^\S+ (\*\*|//|<<|>>|<=|>=|==|!=|[-+*/%@&|^<>]) \S+$")
_SIGNS = {"*": "×", "-": "−"}
_LARGEST = 120
"""How many boxes are drawn; a region of more nodes is read as text."""


def groups_of(report: Report) -> list[dict[str, Any]]:
    """Sites that differ in their layer only, together: what the list on the page shows."""
    found: dict[tuple[object, ...], list[int]] = {}
    for number, site in enumerate(report.sites):
        found.setdefault((site.pattern, *group_key(site)), []).append(number)
    order = {"missed": 0, "kept": 1, "rewritten": 2, "matched": 3}
    groups = []
    for numbers in found.values():
        sites = [report.sites[n] for n in numbers]
        first = sites[0]
        groups.append(
            {
                "numbers": numbers,
                "pattern": first.pattern,
                "outcome": first.outcome,
                "code": first.code,
                "where": merge_paths([s.modules for s in sites]),
                "paths": [" + ".join(m or "(top level)" for m in s.modules) or "(top level)" for s in sites],
                "variant": " ".join(f"{k}={v}" for k, v in first.variant.items()),
                "what": first.reason or (f"kernel {first.kernel}" if first.kernel else ""),
            }
        )
    return sorted(groups, key=lambda g: (order.get(g["outcome"], 9), g["numbers"][0]))


def data_of(report: Report) -> dict[str, Any]:
    """Everything that the page's script renders."""
    graphs = {(g.number, g.body): i for i, g in enumerate(report.captured)}
    drawings = _Drawings()
    indexed = [_Indexed(g) for g in report.captured]
    sites = []
    for site in report.sites:
        at = graphs.get((site.graph, site.body))
        sites.append(_site(site, at, indexed[at] if at is not None else None, drawings))
    return {
        "sites": sites,
        "graphs": [packing.pack(g) for g in report.captured],
        "drawings": drawings.items,
        "patterns": [asdict(p) for p in report.patterns],
    }


class _Indexed:
    """A graph whose nodes are found by name."""

    def __init__(self, graph: GraphRecord) -> None:
        self.before = {n.name: (i, n) for i, n in enumerate(graph.before)}
        self.after = {n.name: (i, n) for i, n in enumerate(graph.after)}


class _Drawings:
    """Drawings by number; sites of one form share theirs."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._known: dict[tuple[object, ...], int] = {}

    def place(self, labels: Sequence[str], edges: Sequence[tuple[int, int]]) -> int:
        key = (tuple(labels), tuple(edges))
        if key not in self._known:
            self._known[key] = len(self.items)
            made = layered(labels, edges)
            self.items.append(
                {"w": made.width, "h": made.height, "labels": list(labels), "boxes": made.boxes, "edges": made.curves}
            )
        return self._known[key]


def label_of(code: str) -> str:
    """What a box says of a node: ``linear``, ``×``, ``pow``."""
    infix = _INFIX.match(code)
    if infix is not None:
        return _SIGNS.get(infix[1], infix[1])
    call = _CALL.match(code)
    if call is not None:
        return code[: call.end() - 1].split(".")[3] if code.startswith("torch.ops.") else call[1]
    return "[ ]" if code.endswith("]") else code[:24]


def _site(site: Site, at: int | None, graph: _Indexed | None, drawings: _Drawings) -> dict[str, Any]:
    captures = {c.node: c.name for c in site.captures if c.node}
    out: dict[str, Any] = {
        "pattern": site.pattern,
        "variant": dict(site.variant),
        "modules": list(site.modules),
        "outcome": site.outcome,
        "code": site.code,
        "reason": site.reason,
        "kernel": site.kernel,
        "why": site.why_kernel,
        "weights": site.weights,
        "extra": site.extra_bytes,
        "shared": site.shared_bytes,
        "matched": [site.matched_nodes, site.pattern_nodes],
        "device": site.device,
        "graph": at,
        "line": site.pattern_line,
        "root": site.root,
        "nodes": list(site.nodes),
        "new": list(site.new_nodes),
        "erased": list(site.erased),
        "captures": [[c.name, c.kind, c.node, c.path, c.type, c.value] for c in site.captures],
        "derived": [asdict(d) for d in site.derived],
        "steps": [[c.op, c.node, list(c.steps)] for c in site.canonical if c.steps],
        "notes": list(site.notes),
        "numbers": asdict(site.numbers) if site.numbers is not None else None,
        "detail": _reason(site.detail),
        "also": [_reason(r) for r in site.also],
    }
    if graph is not None:
        inside = _connected([*site.nodes, *site.erased], site.detail, graph)
        out["before"] = _drawn(inside, captures, graph.before, drawings)
        new = [graph.after[n] for n in site.new_nodes if n in graph.after]
        out["after"] = _drawn(new, captures, graph.after, drawings) if new else None
    return out


def _connected(names: Iterable[str], detail: ReasonRecord | None, graph: _Indexed) -> list[tuple[int, NodeRecord]]:
    """These nodes in graph order, with those that stand between two of them and the one that a reason names."""
    inside = {n for n in names if n in graph.before}
    if detail is not None and graph.before.get(detail.graph_node, (0, NodeRecord("", "input")))[1].inputs:
        inside.add(detail.graph_node)
    for _ in range(2):
        read = {i for n in inside for i in graph.before[n][1].inputs if i in graph.before}
        inside |= {n for n in read if not inside.isdisjoint(graph.before[n][1].inputs)}
    return sorted(graph.before[n] for n in inside)


def _drawn(
    nodes: Sequence[tuple[int, NodeRecord]],
    captures: dict[str, str],
    known: dict[str, tuple[int, NodeRecord]],
    drawings: _Drawings,
) -> dict[str, Any] | None:
    inside = [n for _, n in nodes]
    names = {n.name: None for n in inside}
    outer = [i for n in inside for i in n.inputs if i not in names]
    every = [*dict.fromkeys(outer), *names]
    if not inside or len(every) > _LARGEST:
        return None
    place = {name: i for i, name in enumerate(every)}
    labels = []
    for name in every:
        node = known[name][1] if name in known else NodeRecord(name, "input")
        head = captures.get(name, short_name(node)) if name not in names else label_of(node.code)
        labels.append(f"{head}\n{node.type}" if node.type else head)
    edges = [(place[i], place[n.name]) for n in inside for i in n.inputs]
    return {"drawing": drawings.place(labels, edges), "names": every, "outer": len(every) - len(names)}


def short_name(node: NodeRecord) -> str:
    """What a reader calls a node: an input by the end of its path in the model."""
    name = ".".join(node.code[6:].split(".")[-3:]) if node.code.startswith("input ") else node.name
    return name if len(name) <= 30 else f"…{name[-29:]}"


def _reason(reason: ReasonRecord | None) -> dict[str, Any] | None:
    if reason is None:
        return None
    fields = {name: value for name, value in vars(reason).items() if value and name != "tried"}
    return {**fields, "tried": [_reason(t) for t in reason.tried]}


def words_of(site: Site, labels: Iterable[str]) -> str:
    """What a search of the page finds a site by."""
    words = [site.pattern, site.outcome, site.code, site.kernel, site.weights, *site.modules, *site.variant.values()]
    return " ".join(dict.fromkeys(w.lower() for w in (*words, *labels) if w))
