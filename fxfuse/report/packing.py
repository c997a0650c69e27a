"""Graphs in a report's JSON: rows and tables, since a large model has ten thousand nodes and few modules and lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fxfuse.report.parts import GraphRecord, NodeRecord, SourceRecord


class _Table:
    """Items by number, each once."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._places: dict[Any, int] = {}

    def place(self, item: Any) -> int:
        if item not in self._places:
            self._places[item] = len(self.items)
            self.items.append(item)
        return self._places[item]


def pack(graph: GraphRecord) -> dict[str, Any]:
    """The graph as JSON holds it: a row is ``[name, code, inputs, type, module, line]``, the last three by number.

    In ``after``, a number stands for the row of ``before`` that is the same node.
    """
    types, modules, lines = _Table(), _Table(), _Table()

    def row(node: NodeRecord) -> list[Any]:
        place = lines.place((node.line, node.text))
        return [node.name, node.code, list(node.inputs), types.place(node.type), modules.place(node.module), place]

    before = [row(node) for node in graph.before]
    places = {node: i for i, node in enumerate(graph.before)}
    after = [places[node] if node in places else row(node) for node in graph.after]
    return {
        "number": graph.number,
        "body": graph.body,
        "whole": graph.whole,
        "types": types.items,
        "modules": modules.items,
        "lines": [list(pair) for pair in lines.items],
        "before": before,
        "after": after,
        "sources": [{"file": s.file, "start": s.start, "lines": list(s.lines)} for s in graph.sources],
    }


def unpack(data: dict[str, Any]) -> GraphRecord:
    """The graph that :func:`pack` packed."""
    types, modules, lines = data["types"], data["modules"], data["lines"]

    def node(row: Sequence[Any]) -> NodeRecord:
        name, code, inputs, kind, module, place = row
        return NodeRecord(name, code, tuple(inputs), types[kind], modules[module], *lines[place])

    before = tuple(map(node, data["before"]))
    after = tuple(before[row] if isinstance(row, int) else node(row) for row in data["after"])
    sources = tuple(source(s) for s in data["sources"])
    return GraphRecord(data["number"], data["body"], data["whole"], before, after, sources)


def source(data: dict[str, Any]) -> SourceRecord:
    return SourceRecord(data["file"], data["start"], tuple(data["lines"]))
