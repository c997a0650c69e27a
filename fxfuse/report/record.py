"""The record of what a compile did: plain data, versioned, the single source of every rendering."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

SCHEMA = 2
"""Version of the JSON form; a report of another version is refused by :meth:`Report.load`."""


@dataclass(frozen=True)
class ReasonRecord:
    """Why a site is as it is: a code of ``fxfuse.match.CODES``, a sentence, and where in both sources.

    Attributes:
        expected, found: what the sentence compares, where it compares something.
        at: the operation or capture of the pattern that the search stopped at.
        pattern_line, pattern_text: the author's code.
        graph_node, graph_type, graph_line, graph_text, graph_path: the graph's, with the model's code and module.
        reader_node, reader_line, reader_text, reader_path: who else reads, writes or returns the value.
        alternative, matched, settled: of an attempt, which alternative (``norm=offset``), how many operations of it
            fit, and whether another alternative fits and the reason lies elsewhere.
        tried: the alternatives that were not taken, best first, each with its own reason.
    """

    code: str
    sentence: str
    expected: str = ""
    found: str = ""
    at: str = ""
    pattern_line: str = ""
    pattern_text: str = ""
    graph_node: str = ""
    graph_type: str = ""
    graph_line: str = ""
    graph_text: str = ""
    graph_path: str = ""
    reader_node: str = ""
    reader_line: str = ""
    reader_text: str = ""
    reader_path: str = ""
    alternative: str = ""
    matched: int = 0
    settled: bool = False
    tried: tuple[ReasonRecord, ...] = ()


@dataclass(frozen=True)
class Numbers:
    """How far a site's result is from the one in float64, fused and as eager PyTorch computes it.

    ``max`` and ``rms`` are relative to the exact result's largest and RMS value; ``fused_abs`` is the largest error
    itself. ``result`` is the number of the site's worst result, and ``inputs`` says what it was run on.
    """

    inputs: str
    result: int
    fused_abs: float
    fused_max: float
    fused_rms: float
    eager_max: float
    eager_rms: float
    allowed_max: float
    allowed_rms: float
    within: bool

    def __str__(self) -> str:
        return (
            f"max {self.fused_max:.1e} (eager {self.eager_max:.1e}, allowed {self.allowed_max:.1e}), "
            f"rms {self.fused_rms:.1e} (eager {self.eager_rms:.1e}, allowed {self.allowed_rms:.1e}) on {self.inputs}"
        )


@dataclass(frozen=True)
class Site:
    """One place in a captured graph where a pattern matched or nearly did.

    Attributes:
        pattern, variant: which pattern, and which of its alternatives.
        modules: paths of the modules whose forward made its nodes.
        outcome: ``"rewritten"``, ``"kept"`` (matched, left to the inner compiler) or ``"missed"``; ``"matched"`` where
            only a pattern was asked (``Pattern.explain``), and no kernel was chosen.
        code, reason: why, where it is not rewritten; empty where it is.
        kernel, weights: what it was rewritten to, and where that finds its weights.
        extra_bytes: memory that its derived weights take beyond the parameters'.
        matched_nodes, pattern_nodes: how many of the pattern's operations were found.
        graph: the number of the captured graph, in the order of compilation.
        numbers: its errors against float64, where it was verified.
    """

    pattern: str
    variant: Mapping[str, str]
    modules: tuple[str, ...]
    outcome: str
    code: str = ""
    reason: str = ""
    kernel: str = ""
    why_kernel: str = ""
    weights: str = ""
    extra_bytes: int = 0
    shared_bytes: int = 0
    matched_nodes: int = 0
    pattern_nodes: int = 0
    graph: int = 0
    root: str = ""
    nodes: tuple[str, ...] = ()
    new_nodes: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    detail: ReasonRecord | None = None
    also: tuple[ReasonRecord, ...] = ()
    notes: tuple[str, ...] = ()
    numbers: Numbers | None = None


@dataclass
class Report:
    """What fxfuse did with one compile, or what :func:`fxfuse.explain` found one call would compile.

    ``seconds`` has fxfuse's own time by phase, and under ``inner`` the inner compiler's. ``only_matched``: a pattern
    was asked about a graph (``Pattern.explain``), and nothing was to be rewritten.
    """

    sites: tuple[Site, ...] = ()
    graphs: int = 1
    nodes: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    name: str = ""
    only_matched: bool = False

    @cached_property
    def matched(self) -> Counter[str]:
        """Pattern name -> sites that matched, rewritten or kept."""
        return Counter(s.pattern for s in self.sites if s.outcome in {"matched", "rewritten", "kept"})

    @cached_property
    def rewritten(self) -> Counter[str]:
        """Pattern name -> sites that were rewritten."""
        return Counter(s.pattern for s in self.sites if s.outcome == "rewritten")

    @cached_property
    def verified(self) -> Counter[str]:
        """Pattern name -> rewritten sites that were measured and are as close to float64 as they must be."""
        return Counter(s.pattern for s in self.sites if s.outcome == "rewritten" and s.numbers and s.numbers.within)

    @property
    def ok(self) -> bool:
        """Whether sites were verified, every rewritten one was, and none had to be left for it (code VERIFY)."""
        left = any(s.code == "VERIFY" for s in self.sites)
        return bool(self.verified) and self.verified == self.rewritten and not left

    @property
    def own_seconds(self) -> float:
        """Time that fxfuse itself took, without the inner compiler."""
        return sum(t for phase, t in self.seconds.items() if phase != "inner")

    def summary(self) -> str:
        """One line: what was rewritten, kept and missed."""
        kinds = Counter(s.outcome for s in self.sites)
        counts = self.matched if self.only_matched else self.rewritten
        fused = ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "nothing"
        rest = [f"{kinds[k]} {k}" for k in ("kept", "missed") if kinds[k]]
        where = f"{self.graphs} graph{'s' if self.graphs != 1 else ''} of {self.nodes} nodes"
        tail = f"; {', '.join(rest)}" if rest else ""
        did = "matched" if self.only_matched else "rewrote"
        return f"fxfuse: {did} {fused} in {where}{tail} ({self.own_seconds:.2f} s)"

    def __str__(self) -> str:
        from fxfuse.report.text import render  # text is made only when somebody reads it

        return render(self)

    def to_json(self) -> str:
        """The whole record as JSON."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=1, default=str)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that :meth:`to_json` wrote.

        Raises:
            ValueError: not a report, or one of another schema version.
        """
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"a report of schema {SCHEMA} is needed; found {found!r}.")
        data.pop("schema")
        data["sites"] = tuple(_site(s) for s in data["sites"])
        data["notes"] = tuple(data["notes"])
        return cls(**data)

    def to_html(self) -> str:
        """The report as one self-contained HTML page."""
        import html

        body = html.escape(str(self))
        title = html.escape(self.summary())
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>'
            ":root{color-scheme:light dark}body{font:14px/1.5 ui-monospace,monospace;margin:2rem}"
            f"pre{{white-space:pre-wrap}}</style></head><body><h1>fxfuse</h1><pre>{body}</pre></body></html>"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report; the suffix says how: .json, .txt or .html.

        Raises:
            ValueError: another suffix.
        """
        name = os.fspath(path)
        suffix = os.path.splitext(name)[1]
        forms = {".json": self.to_json, ".txt": self.__str__, ".html": self.to_html}
        if suffix not in forms:
            raise ValueError(f"a report is saved as {', '.join(forms)}; given {name!r}.")
        folder = os.path.dirname(os.path.abspath(name))
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=suffix, delete=False, encoding="utf-8") as file:
            file.write(forms[suffix]())
        os.replace(file.name, name)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """The report saved as JSON at ``path``."""
        with open(path, encoding="utf-8") as file:
            return cls.from_json(file.read())


def _site(data: dict[str, Any]) -> Site:
    for key in ("modules", "nodes", "new_nodes", "steps", "notes"):
        data[key] = tuple(data[key])
    data["also"] = tuple(_reason(r) for r in data["also"])
    data["detail"] = _reason(data["detail"]) if data["detail"] else None
    data["numbers"] = Numbers(**data["numbers"]) if data.get("numbers") else None
    return Site(**data)


def _reason(data: dict[str, Any]) -> ReasonRecord:
    return ReasonRecord(**{**data, "tried": tuple(map(_reason, data["tried"]))})
