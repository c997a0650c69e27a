"""What a report's sites and graphs are made of: plain data, which ``schema.json`` documents."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CaptureRecord:
    """What one capture of the pattern is bound to.

    ``kind`` is ``parameter``, ``buffer``, ``input``, ``constant``, ``computed`` (in the graph), ``number`` or
    ``absent``; ``path`` is a parameter's in the model, ``type`` a tensor's as ``f32[8, 16]``, ``value`` a number's.
    Captures of ``many`` siblings are named ``weights[0]``, ``weights[1]``, ...
    """

    name: str
    kind: str
    node: str = ""
    path: str = ""
    type: str = ""
    value: str = ""


@dataclass(frozen=True)
class DerivedRecord:
    """A weight that the kernel reads instead of its sources: ``transform`` of the captures ``sources``."""

    name: str
    transform: str
    sources: tuple[str, ...]
    paths: tuple[str, ...]
    types: tuple[str, ...]
    type: str
    bytes: int
    placement: str


@dataclass(frozen=True)
class CanonicalRecord:
    """One canonical operation of a site: the nodes that it stands for, and the rules that led from them to it."""

    op: str
    node: str
    nodes: tuple[str, ...]
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeRecord:
    """A node of a graph: ``code`` as Python, ``inputs`` by name, its type, and where in the model it comes from."""

    name: str
    code: str
    inputs: tuple[str, ...] = ()
    type: str = ""
    module: str = ""
    line: str = ""
    text: str = ""


@dataclass(frozen=True)
class SourceRecord:
    """Consecutive lines of a source file, the first of which is number ``start``."""

    file: str
    start: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class GraphRecord:
    """A captured graph, and what became of it.

    ``whole`` says that all nodes are here. Where nobody had asked for a report before the compile, only those in and
    next to sites are. A node of ``after`` that is equal to one of ``before`` is that node.

    ``body`` names the graph inside a higher-order op of graph ``number``; it is empty for that graph itself.
    """

    number: int
    body: str
    whole: bool
    before: tuple[NodeRecord, ...]
    after: tuple[NodeRecord, ...]
    sources: tuple[SourceRecord, ...] = ()


@dataclass(frozen=True)
class PatternRecord:
    """What the search for one pattern did: places where it began, and what came of them, and how long it took."""

    name: str
    line: str = ""
    tried: int = 0
    matched: int = 0
    near: int = 0
    rewritten: int = 0
    ms: float = 0.0
    source: SourceRecord | None = None
