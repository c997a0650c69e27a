"""From the matcher's failures to the report's records: names, types and lines in both sources."""

from __future__ import annotations

import os
import re

from torch import fx

from fxfuse.match import Failure
from fxfuse.report import ReasonRecord
from fxfuse.view import Value
from fxfuse.view.leaves import stack_path
from fxfuse.view.values import SymbolicMeta, describe_tensor

_FRAME = re.compile(r'File "([^"]+)", line (\d+)[^\n]*\n\s+([^\n]+)')


def reason_record(failure: Failure) -> ReasonRecord:
    """The failure as plain data."""
    node = failure.node
    line, text = source_line(node) if node is not None else ("", "")
    reader = failure.reader
    reader_line, reader_text = source_line(reader) if reader is not None else ("", "")
    term = failure.term
    return ReasonRecord(
        code=failure.code,
        sentence=failure.sentence(),
        pattern_line=_short(f"{term.line}") if term is not None else "",
        pattern_text=term.line.text if term is not None else "",
        graph_node=node.name if node is not None else "",
        graph_type=_type(failure.operand),
        graph_line=line,
        graph_text=text,
        graph_path=stack_path(node) if node is not None else "",
        reader_node=("the graph's output" if reader.op == "output" else reader.name) if reader is not None else "",
        reader_line=reader_line,
        reader_text=reader_text,
        reader_path=stack_path(reader) if reader is not None else "",
    )


def source_line(node: fx.Node) -> tuple[str, str]:
    """``("modeling_x.py:88", "hidden = self.norm(hidden)")``: the innermost line of the model that made this node."""
    trace = node.stack_trace or ""
    frames = _FRAME.findall(trace)
    if not frames:
        return "", ""
    file, number, text = frames[-1]
    return f"{os.path.basename(file)}:{number}", text.strip()


def _type(operand: object) -> str:
    if isinstance(operand, Value) and not isinstance(operand.meta, SymbolicMeta):
        return describe_tensor(operand)
    return ""


def _short(line: str) -> str:
    return os.path.join(*line.split(os.sep)[-2:]) if os.sep in line else line
