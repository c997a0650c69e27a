"""From the matcher's failures to the report's records: names, types and lines in both sources."""

from __future__ import annotations

import linecache
import os
import re
from collections.abc import Sequence
from typing import Any

from torch import fx

from fxfuse.authoring.terms import CaptureTerm, Line, Term
from fxfuse.match import Failure, Found
from fxfuse.match.reasons import expected_words, found_words, place_of
from fxfuse.report import ReasonRecord, Site
from fxfuse.view import Value
from fxfuse.view.leaves import stack_path
from fxfuse.view.values import SymbolicMeta, describe_tensor

_FRAME = re.compile(r'File "([^"]+)", line (\d+)[^\n]*\n\s+([^\n]+)')
_LONGEST_SIGNATURE = 64


def site_record(found: Found, failure: Failure | None, modules: Sequence[str], outcome: str, **more: Any) -> Site:
    """A site as plain data. ``more`` are fields of :class:`fxfuse.report.Site` that come from its rewrite."""
    match = found.match
    values = match.interior if match is not None else ()
    return Site(
        pattern=found.pattern.name,
        variant=dict(found.variant or {}),
        modules=tuple(modules),
        outcome=outcome,
        code=failure.code if failure is not None else "",
        reason=failure.sentence() if failure is not None else "",
        matched_nodes=found.matched,
        pattern_nodes=found.total,
        root=match.root.node.name if match is not None else found.seed.node.name,
        nodes=tuple(n.name for n in found.nodes),
        steps=tuple(dict.fromkeys(step for v in values for step in v.steps)),
        detail=reason_record(failure) if failure is not None else None,
        also=tuple(map(reason_record, failure.also)) if failure is not None else (),
        **more,
    )


def reason_record(failure: Failure, **attempt: Any) -> ReasonRecord:
    """The failure as plain data. ``attempt``: which alternative it stopped, and how far that got."""
    node = failure.node
    line, text = source_line(node) if node is not None else ("", "")
    reader = failure.reader
    reader_line, reader_text = source_line(reader) if reader is not None else ("", "")
    author = _author_line(failure.term)
    return ReasonRecord(
        code=failure.code,
        sentence=failure.sentence(),
        expected=expected_words(failure),
        found=found_words(failure),
        at=place_of(failure.term),
        pattern_line=_short(str(author)) if author is not None else "",
        pattern_text=author.text if author is not None else "",
        graph_node=node.name if node is not None else "",
        graph_type=_type(failure.operand),
        graph_line=line,
        graph_text=text,
        graph_path=stack_path(node) if node is not None else "",
        reader_node=("the graph's output" if reader.op == "output" else reader.name) if reader is not None else "",
        reader_line=reader_line,
        reader_text=reader_text,
        reader_path=stack_path(reader) if reader is not None else "",
        tried=tuple(
            reason_record(a.reason, alternative=f"{a.choice}={a.label}", matched=a.matched, settled=a.settled)
            for a in failure.tried
        ),
        **attempt,
    )


def _author_line(term: Term | None) -> Line | None:
    """Where the author wrote a term; of a capture, where its parameter is declared."""
    if not isinstance(term, CaptureTerm):
        return term.line if term is not None else None
    declares = re.compile(rf"[(,\s]*\b{re.escape(term.name)}\b\s*[:=]")
    for number in range(term.line.number, term.line.number + _LONGEST_SIGNATURE):
        text = linecache.getline(term.line.file, number)
        if declares.match(text):
            return Line(term.line.file, number, text.strip())
    return term.line


def source_line(node: fx.Node) -> tuple[str, str]:
    """``("modeling_x.py:88", "hidden = self.norm(hidden)")``: the innermost line of the model that made this node."""
    trace = node.stack_trace or ""
    frames = _FRAME.findall(trace)
    if not frames:
        return "", ""
    file, number, text = frames[-1]
    return f"{os.path.basename(file)}:{number}", text.strip()


def _type(operand: object) -> str:
    if isinstance(operand, fx.Node):
        operand = Value("", {}, operand, meta=operand.meta.get("example_value", operand.meta.get("val")))
    if isinstance(operand, Value) and not isinstance(operand.meta, SymbolicMeta):
        return describe_tensor(operand)
    return ""


def _short(line: str) -> str:
    return os.path.join(*line.split(os.sep)[-2:]) if os.sep in line else line
