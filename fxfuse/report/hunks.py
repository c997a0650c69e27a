"""What a rewrite changed, as text: lines of Python with ``dtype[shape]`` comments, and two lines around them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fxfuse.report.parts import GraphRecord, NodeRecord
from fxfuse.report.record import Report, Site

CONTEXT = 2
_LAST = 5
_LONG = 24

Row = tuple[NodeRecord | None, NodeRecord | None, bool]


def aligned(graph: GraphRecord) -> list[Row]:
    """Before and after side by side; the last item says that both are one node."""
    places = {node.name: i for i, node in enumerate(graph.before)}
    rows: list[Row] = []
    fresh: list[NodeRecord] = []
    left = 0
    for node in graph.after:
        at = places.get(node.name, -1)
        if at < left:
            fresh.append(node)
            continue
        rows += _side_by_side(graph.before[left:at], fresh)
        rows.append((graph.before[at], node, True))
        left, fresh = at + 1, []
    return rows + _side_by_side(graph.before[left:], fresh)


def _side_by_side(old: Sequence[NodeRecord], new: Sequence[NodeRecord]) -> list[Row]:
    count = max(len(old), len(new))
    return [(old[i] if i < len(old) else None, new[i] if i < len(new) else None, False) for i in range(count)]


def hunk(report: Report, site: Site) -> list[str]:
    """The lines of one site: ``-`` goes away, ``+`` comes in its place, ``>`` is where a near miss differs."""
    graph = next((g for g in report.captured if (g.number, g.body) == (site.graph, site.body)), None)
    if graph is None:
        return []
    calls = _calls(graph)
    detail = site.detail
    asked = {*site.nodes, *site.erased, *((detail.graph_node, detail.reader_node) if detail is not None else ())}
    new = set(site.new_nodes)
    rows = aligned(graph)
    wanted = [i for i, (b, a, _) in enumerate(rows) if (b and b.name in asked) or (a and a.name in new)]
    shown = sorted({j for i in wanted for j in range(max(0, i - CONTEXT), min(len(rows), i + CONTEXT + 1))})
    lines: list[str] = []
    gone: list[str] = []
    fresh: list[str] = []

    def flush() -> None:
        lines.extend([*gone, *fresh])
        gone.clear()
        fresh.clear()

    for place, i in enumerate(shown):
        if place and i != shown[place - 1] + 1:
            flush()
            lines.append("  ...")
        before, after, same = rows[i]
        if same and before is not None and after is not None and before == after:
            flush()
            mark = ">" if detail is not None and before.name == detail.graph_node else " "
            lines.append(_line(mark, before, calls))
            continue
        if before is not None:
            gone.append(_line("-", before, calls))
        if after is not None:
            fresh.append(_line("+", after, calls))
        if same:
            flush()
    flush()
    return lines


def _line(mark: str, node: NodeRecord, calls: Mapping[str, str]) -> str:
    code = re.sub(r"\w+", lambda word: calls.get(word[0], word[0]), node.code) if node.inputs else node.code
    kind = f"  # {node.type}" if node.type else ""
    name = "" if code.startswith("return") else f"{calls.get(node.name, node.name)} = "
    return f"{mark} {name}{code}{kind}"


def _calls(graph: GraphRecord) -> dict[str, str]:
    """An input is called by the end of its path in the model, where its own name is made of that path."""
    inputs = (n for n in graph.before if n.code.startswith("input ") and len(n.name) > _LONG)
    return {n.name: ".".join(n.code.removeprefix("input ").split(".")[-_LAST:]) for n in inputs}
