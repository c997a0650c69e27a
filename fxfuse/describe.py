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
from fxfuse.match.reasons import expected_words, found_words, leaf_words, place_of, words
from fxfuse.report import ReasonRecord, Site
from fxfuse.report.later import Later
from fxfuse.view import Value
from fxfuse.view.leaves import readable_path
from fxfuse.view.values import SymbolicMeta, dtype_name

FRAME = re.compile(r'File "([^"]+)", line (\d+)[^\n]*\n\s+([^\n]+)')
_LONGEST_SIGNATURE = 64
_LONGEST_FRAME = 4096
LONGEST_LINE = 200
"""A line of source is kept up to here: there are generated ones of megabytes."""


class Noted(NamedTuple):
    """What is kept of a site until somebody reads it: nothing here leads to a graph, a module or a tensor."""

    pattern: str
    outcome: str
    variant: Mapping[str, str]
    matched: int
    total: int
    root: str
    nodes: tuple[str, ...]
    steps: Sequence[tuple[str, ...]]
    reason: _Reason | None
    also: Sequence[_Reason]

    def site(self, modules: Sequence[str], **more: Any) -> Site:
        """The site as plain data. ``more`` are fields of :class:`fxfuse.report.Site` that come from its rewrite."""
        detail = _record(self.reason, {}) if self.reason is not None else None
        return Site(
            pattern=self.pattern,
            variant=dict(self.variant),
            modules=tuple(modules),
            outcome=self.outcome,
            code=detail.code if detail is not None else "",
            reason=detail.sentence if detail is not None else "",
            matched_nodes=self.matched,
            pattern_nodes=self.total,
            root=self.root,
            nodes=self.nodes,
            steps=tuple(dict.fromkeys(step for steps in self.steps for step in steps)),
            detail=detail,
            also=Later(partial(_records, self.also)) if self.also else (),
            **more,
        )


def noted(found: Found, failure: Failure | None, outcome: str, memo: Memo) -> Noted:
    """The site in references to what is there anyway."""
    match = found.match
    return Noted(
        found.pattern.name,
        outcome,
        found.variant or {},
        found.matched,
        found.total,
        (match.root if match is not None else found.seed).node.name,
        tuple([n.name for n in found.nodes]),
        [v.steps for v in match.interior if v.steps] if match is not None else (),
        _taken(failure, memo) if failure is not None else None,
        [_taken(f, memo) for f in failure.also] if failure is not None else (),
    )


def site_record(found: Found, failure: Failure | None, modules: Sequence[str], outcome: str) -> Site:
    """A site as plain data, at once."""
    return noted(found, failure, outcome, {}).site(modules)


_Word = Any
"""A word of a sentence, or the term or input of the graph that it is made of when somebody reads it."""

_Place = tuple[str, "dict[str, tuple[str, Any]] | None", str, Any, _Word]
"""Where a value is, in references to what is there anyway: node, modules, innermost frame, type, and its word."""

_Reason = tuple[str, _Word, _Word, "Term | None", bool, "_Place | None", "_Place | None", Sequence[Any]]
"""A failure without what keeps its graph alive: code, expected, found, term, between, where, reader, and of each
attempt its choice, label, matched, settled and reason. Plain tuples, since there are many for each that is read."""


def reason_record(failure: Failure) -> ReasonRecord:
    """The failure as plain data; the alternatives' are made when somebody reads them."""
    return _record(_taken(failure, {}), {})


Memo = dict[int, _Place]
"""Where values and nodes are, by their id: many reasons are about a few. The graph outlives the memo."""


def _taken(failure: Failure, memo: Memo) -> _Reason:
    operand, expected, found, reader, tried = (
        failure.operand, failure.expected, failure.found, failure.reader, failure.tried,
    )  # fmt: skip
    place = memo.get(id(operand)) or _placed(operand, memo)
    if found is operand and place is not None:
        found = place[4]
    elif type(found) is not str and found is not None:
        found = _word(found)
    return (
        failure.code,
        expected if type(expected) is str else _word(expected),
        found,
        failure.term,
        failure.between,
        place,
        (memo.get(id(reader)) or _placed(reader, memo)) if reader is not None else None,
        [(a.choice, a.label, a.matched, a.settled, _taken(a.reason, memo)) for a in tried] if tried else (),
    )


def _placed(operand: object, memo: Memo) -> _Place | None:
    node = operand.node if isinstance(operand, Value) else operand
    if not isinstance(node, fx.Node):
        return None  # not remembered: nothing keeps its id
    name = "the graph's output" if node.op == "output" else node.name
    stack = node.meta.get("nn_module_stack")
    place = name, stack, last_frame(node), form_of(_tensor(operand)), _word(operand)
    memo[id(operand)] = place
    return place


def _word(operand: object) -> _Word:
    """What :func:`fxfuse.match.reasons.words` says, or what it is said of, where that takes time."""
    if isinstance(operand, Value) and operand.leaf is not None:
        return operand.leaf, operand.node.name
    return operand if isinstance(operand, Term) else words(operand)


def _spelled(word: _Word) -> Any:
    if isinstance(word, tuple):
        leaf, name = word
        return leaf_words(leaf, name)
    return word


def _record(reason: _Reason, attempt: Mapping[str, Any]) -> ReasonRecord:
    code, expected, found, term, between, where, reader, tried = reason
    said = Failure(code, words(_spelled(expected)), _spelled(found), term, between=between)
    node, stack, trace, form, _ = where if where is not None else _NOWHERE
    line, text = _line_of(trace)
    reader_node, reader_stack, reader_trace, _, _ = reader if reader is not None else _NOWHERE
    reader_line, reader_text = _line_of(reader_trace)
    author = _author_line(term)
    return ReasonRecord(
        code=code,
        sentence=said.sentence(),
        expected=expected_words(said),
        found=found_words(said),
        at=place_of(term),
        pattern_line=short_path(author) if author is not None else "",
        pattern_text=author.text if author is not None else "",
        graph_node=node,
        graph_type=type_words(form),
        graph_line=line,
        graph_text=text,
        graph_path=readable_path(innermost(stack)),
        reader_node=reader_node,
        reader_line=reader_line,
        reader_text=reader_text,
        reader_path=readable_path(innermost(reader_stack)),
        tried=Later(partial(_attempts, tried)) if tried else (),
        **attempt,
    )


_NOWHERE: _Place = ("", None, "", None, "")


def _attempts(tried: Sequence[Any]) -> Iterable[ReasonRecord]:
    for choice, label, matched, settled, reason in tried:
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
    if not trace:
        return ""
    start = max(trace.rfind('File "'), 0)
    return str(trace[start : start + _LONGEST_FRAME])


def _line_of(trace: str) -> tuple[str, str]:
    frame = FRAME.search(trace)
    if frame is None:
        return "", ""
    file, number, text = frame.groups()
    return f"{os.path.basename(file)}:{number}", text.strip()[:LONGEST_LINE]


def raw_path(node: fx.Node) -> str:
    """The innermost module's path as Dynamo writes it."""
    return innermost(node.meta.get("nn_module_stack"))


def innermost(stack: dict[str, tuple[str, Any]] | None) -> str:
    """The last path of a ``nn_module_stack``."""
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
        shape = example.shape
        return example.dtype, shape if _INT.issuperset(map(type, shape)) else tuple(map(str, shape))
    if isinstance(example, tuple | list):
        return [form_of(e) for e in example]
    return None


_INT = frozenset((int,))


def type_words(form: Any) -> str:
    """``bf16[s0, 4096]`` of what :func:`form_of` kept."""
    if isinstance(form, tuple):
        return f"{dtype_name(form[0])}[{', '.join(map(str, form[1]))}]"
    return f"({', '.join(map(type_words, form))})" if form else ""


def short_path(place: Line) -> str:
    """A line with its file's last folder."""
    line = str(place)
    return os.path.join(*line.split(os.sep)[-2:]) if os.sep in line else line
