"""The record of what a compile did: plain data, versioned, the single source of every rendering."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fxfuse.report import packing, regions
from fxfuse.report.later import Later, SitesField
from fxfuse.report.parts import CanonicalRecord, CaptureRecord, DerivedRecord, GraphRecord, PatternRecord
from fxfuse.report.regions import ReuseRecord

SCHEMA = 3
"""Version of the JSON form, which ``schema.json`` beside this file documents. :meth:`Report.load` reads ``READS``, and
refuses every other version."""

READS = (2, SCHEMA)
"""Version 2 lacks what sites are made of (captures, derived weights, canonical operations), graphs and patterns."""


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
    tried: Sequence[ReasonRecord] = ()


@dataclass(frozen=True)
class Numbers:
    """How far a site's result is from the one in float64, fused and as eager PyTorch computes it.

    ``max`` and ``rms`` are relative to the exact result's largest and RMS value; ``fused_abs`` is the largest error
    itself. ``result`` is the number of the site's worst result, and ``inputs`` says what it was run on. ``mean`` is the
    mean error, relative to the mean magnitude; ``nearer`` says whose RMS error is smaller (``fused``, ``eager`` or
    ``equal``); ``ulps`` how many elements of the fused result are so many units in the last place off.
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
    fused_mean: float = 0.0
    eager_mean: float = 0.0
    nearer: str = ""
    ulps: Mapping[str, int] = field(default_factory=dict)

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
        graph: the number of the captured graph, in the order of compilation; ``body`` names the graph of a
            higher-order op inside it.
        root, nodes, new_nodes, erased: the captured graph's node of the last result, all of the site's, those that
            came in their place, and those that went away.
        captures, derived, canonical: what the pattern's captures are bound to, the weights that the kernel reads
            instead of parameters, and the operations with the rules that led to them.
        pattern_line: where the pattern was written.
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
    also: Sequence[ReasonRecord] = ()
    notes: tuple[str, ...] = ()
    numbers: Numbers | None = None
    body: str = ""
    device: str = ""
    pattern_line: str = ""
    captures: Sequence[CaptureRecord] = ()
    erased: Sequence[str] = ()
    derived: Sequence[DerivedRecord] = ()
    canonical: Sequence[CanonicalRecord] = ()


_SITES = SitesField()


@dataclass
class Report:
    """What fxfuse did with one compile, or what :func:`fxfuse.explain` found one call would compile.

    ``seconds`` has fxfuse's own time by phase, and under ``inner`` the inner compiler's. ``only_matched``: a pattern
    was asked about a graph (``Pattern.explain``), and nothing was to be rewritten. ``captured`` are the graphs and what
    became of them; ``patterns`` says what the search for each pattern did.
    """

    sites: SitesField = _SITES
    graphs: int = 1
    nodes: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    name: str = ""
    only_matched: bool = False
    patterns: Sequence[PatternRecord] = ()
    captured: Sequence[GraphRecord] = ()
    reuse: Sequence[ReuseRecord] = ()

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """Pattern and outcome of each site; asking for them makes no site."""
        return _SITES.kinds(self)

    @cached_property
    def matched(self) -> Counter[str]:
        """Pattern name -> sites that matched, rewritten or kept."""
        return Counter(name for name, outcome in self.kinds if outcome in {"matched", "rewritten", "kept"})

    @cached_property
    def rewritten(self) -> Counter[str]:
        """Pattern name -> sites that were rewritten."""
        return Counter(name for name, outcome in self.kinds if outcome == "rewritten")

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
        kinds = Counter(outcome for _, outcome in self.kinds)
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
        """The whole record as JSON, as ``fxfuse/report/schema.json`` describes it."""
        rows = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "captured"}
        text = json.dumps({"schema": SCHEMA, **_plain(rows)}, indent=1, default=str)
        graphs = ",\n  ".join(json.dumps(packing.pack(g), separators=(",", ":")) for g in self.captured)
        return f'{text[:-2]},\n "captured": [\n  {graphs}\n ]\n}}' if graphs else f'{text[:-2]},\n "captured": []\n}}'

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that :meth:`to_json` wrote.

        Raises:
            ValueError: not a report, or one of a schema version that cannot be read.
        """
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("schema") not in READS:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"a report of schema {SCHEMA} is needed; found {found!r}. Older ones that can be read: 2.")
        data.pop("schema")
        try:
            data["sites"] = tuple(_site(s) for s in data["sites"])
            data["notes"] = tuple(data["notes"])
            data["patterns"] = tuple(_pattern(p) for p in data.get("patterns", ()))
            data["reuse"] = regions.from_data(data.get("reuse", ()))
            data["captured"] = tuple(map(packing.unpack, data.get("captured", ())))
            return cls(**data)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"the file is no report that fxfuse wrote: {type(error).__name__}: {error}.") from error

    def to_html(self) -> str:
        """The report as one self-contained HTML page; it needs no network."""
        from fxfuse.report.html import page  # Jinja is imported only for a page

        return page(self)

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


def _plain(item: Any) -> Any:
    """Records as dicts, sequences as lists."""
    if isinstance(item, str | int | float | None):
        return item
    if dataclasses.is_dataclass(item):
        return {f.name: _plain(getattr(item, f.name)) for f in dataclasses.fields(item)}
    if isinstance(item, Mapping):
        return {key: _plain(value) for key, value in item.items()}
    return [_plain(one) for one in item] if isinstance(item, list | tuple | Later | set | frozenset) else item


def _site(data: dict[str, Any]) -> Site:
    for key in ("modules", "nodes", "new_nodes", "steps", "notes"):
        data[key] = tuple(data[key])
    data["also"] = tuple(_reason(r) for r in data["also"])
    data["detail"] = _reason(data["detail"]) if data["detail"] else None
    data["numbers"] = Numbers(**data["numbers"]) if data.get("numbers") else None
    data["erased"] = tuple(data.get("erased", ()))
    data["captures"] = tuple(CaptureRecord(**c) for c in data.get("captures", ()))
    data["derived"] = tuple(DerivedRecord(**_tuples(d)) for d in data.get("derived", ()))
    data["canonical"] = tuple(CanonicalRecord(**_tuples(c)) for c in data.get("canonical", ()))
    return Site(**data)


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def _pattern(data: dict[str, Any]) -> PatternRecord:
    return PatternRecord(**{**data, "source": packing.source(data["source"]) if data["source"] else None})


def _reason(data: dict[str, Any]) -> ReasonRecord:
    return ReasonRecord(**{**data, "tried": tuple(map(_reason, data["tried"]))})
