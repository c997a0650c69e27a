"""From the matcher's failures to the report's records: names, types and lines in both sources."""

from __future__ import annotations

import linecache
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import fx

from fxfuse.authoring.terms import CaptureTerm, Line, Term
from fxfuse.match import Failure, Found
from fxfuse.match.reasons import expected_words, found_words, place_of, words
from fxfuse.report import ReasonRecord, Site
from fxfuse.report.later import Later
from fxfuse.view import Value
from fxfuse.view.leaves import readable_path
from fxfuse.view.values import SymbolicMeta, dtype_name

FRAME = re.compile(r'File "([^"]+)", line (\d+)[^\n]*\n\s+([^\n]+)')
_LONGEST_SIGNATURE = 64


def site_record(found: Found, failure: Failure | None, modules: Sequence[str], outcome: str, **more: Any) -> Site:
    """A site as plain data. ``more`` are fields of :class:`fxfuse.report.Site` that come from its rewrite."""
    match = found.match
    values = match.interior if match is not None else ()
    memo: _Memo = {}
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
        detail=_record(_taken(failure, memo), {}) if failure is not None else None,
        also=Later(partial(_records, [_taken(f, memo) for f in failure.also])) if failure and failure.also else (),
        **more,
    )


class _Place(NamedTuple):
    """Where a node is, in references to what is there anyway."""

    name: str
    path: str
    trace: str


class _Reason(NamedTuple):
    """A failure without what keeps its graph alive, with words in place of values."""

    code: str
    expected: str
    found: str | None
    term: Term | None
    between: bool
    type: Any
    node: _Place | None
    reader: _Place | None
    tried: tuple[tuple[tuple[str, str, int, bool], _Reason], ...]


def reason_record(failure: Failure) -> ReasonRecord:
    """The failure as plain data; the alternatives' are made when somebody reads them."""
    return _record(_taken(failure, {}), {})


_Memo = dict[Any, Any]
"""What the attempts at one site have in common: they stopped at a few nodes."""


def _taken(failure: Failure, memo: _Memo) -> _Reason:
    found, operand = failure.found, failure.operand
    form = memo.get(id(operand), memo)
    if form is memo:
        form = memo[id(operand)] = form_of(_tensor(operand))
    return _Reason(
        failure.code,
        words(failure.expected),
        words(found) if found is not None else None,
        failure.term,
        failure.between,
        form,
        _place(failure.node, memo),
        _place(failure.reader, memo),
        tuple([((a.choice, a.label, a.matched, a.settled), _taken(a.reason, memo)) for a in failure.tried]),
    )


def _place(node: fx.Node | None, memo: _Memo) -> _Place | None:
    if node is None:
        return None
    if node not in memo:
        name = "the graph's output" if node.op == "output" else node.name
        memo[node] = _Place(name, raw_path(node), last_frame(node))
    place: _Place = memo[node]
    return place


def _record(reason: _Reason, attempt: Mapping[str, Any]) -> ReasonRecord:
    said = Failure(reason.code, reason.expected, reason.found, reason.term, between=reason.between)
    node, reader = reason.node, reason.reader
    line, text = _line_of(node.trace) if node is not None else ("", "")
    reader_line, reader_text = _line_of(reader.trace) if reader is not None else ("", "")
    author = _author_line(said.term)
    return ReasonRecord(
        code=said.code,
        sentence=said.sentence(),
        expected=expected_words(said),
        found=found_words(said),
        at=place_of(said.term),
        pattern_line=short_path(author) if author is not None else "",
        pattern_text=author.text if author is not None else "",
        graph_node=node.name if node is not None else "",
        graph_type=type_words(reason.type),
        graph_line=line,
        graph_text=text,
        graph_path=readable_path(node.path) if node is not None and node.path else "",
        reader_node=reader.name if reader is not None else "",
        reader_line=reader_line,
        reader_text=reader_text,
        reader_path=readable_path(reader.path) if reader is not None and reader.path else "",
        tried=Later(partial(_attempts, reason.tried)) if reason.tried else (),
        **attempt,
    )


def _attempts(reasons: Sequence[tuple[tuple[str, str, int, bool], _Reason]]) -> Iterable[ReasonRecord]:
    for (choice, label, matched, settled), reason in reasons:
        yield _record(reason, {"alternative": f"{choice}={label}", "matched": matched, "settled": settled})


def _records(reasons: Sequence[_Reason]) -> Iterable[ReasonRecord]:
    return (_record(reason, {}) for reason in reasons)


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
    return _line_of(last_frame(node))


def last_frame(node: fx.Node) -> str:
    """The innermost frame of a node's stack trace, as text."""
    trace = node.meta.get("stack_trace")
    return trace[max(trace.rfind('File "'), 0) :] if trace else ""


def _line_of(trace: str) -> tuple[str, str]:
    frame = FRAME.search(trace)
    if frame is None:
        return "", ""
    file, number, text = frame.groups()
    return f"{os.path.basename(file)}:{number}", text.strip()


def raw_path(node: fx.Node) -> str:
    """The innermost module's path as Dynamo writes it."""
    stack = node.meta.get("nn_module_stack")
    return str(next(reversed(stack.values()))[0]) if stack else ""


def _tensor(operand: object) -> Any:
    if isinstance(operand, fx.Node):
        return operand.meta.get("example_value", operand.meta.get("val"))
    if isinstance(operand, Value) and not isinstance(operand.meta, SymbolicMeta):
        return operand.meta
    return None


def form_of(example: Any) -> Any:
    """A tensor's dtype and shape, without what symbolic sizes keep alive; of several tensors, those of each."""
    if isinstance(example, torch.Tensor):
        return example.dtype, tuple(s if type(s) is int else str(s) for s in example.shape)
    if isinstance(example, tuple | list):
        return [form_of(e) for e in example]
    return None


def type_words(form: Any) -> str:
    """``bf16[s0, 4096]`` of what :func:`form_of` kept."""
    if isinstance(form, tuple):
        return f"{dtype_name(form[0])}[{', '.join(map(str, form[1]))}]"
    return f"({', '.join(map(type_words, form))})" if form else ""


def short_path(place: Line) -> str:
    """A line with its file's last folder."""
    line = str(place)
    return os.path.join(*line.split(os.sep)[-2:]) if os.sep in line else line
