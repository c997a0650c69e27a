"""What a report keeps of a compile: plain data taken in passing, made into records when somebody reads them.

Nothing here holds a graph, a module or a tensor after the compile. Where nobody has asked for a report, only nodes in
and next to sites are taken down.
"""

from __future__ import annotations

import inspect
import linecache
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from torch import fx

from fxfuse import paths
from fxfuse.authoring import Pattern, Region
from fxfuse.authoring.terms import Line
from fxfuse.describe import (
    FRAME,
    LONGEST_LINE,
    Memo,
    form_of,
    innermost,
    last_frame,
    noted,
    raw_path,
    short_path,
    type_words,
)  # fmt: skip
from fxfuse.kernels import Kernel
from fxfuse.match import Failure, Found, Match
from fxfuse.program import Ref, code_of, plain, target_name
from fxfuse.report import Site
from fxfuse.report.later import Later, Sites
from fxfuse.report.parts import (
    CanonicalRecord,
    CaptureRecord,
    DerivedRecord,
    GraphRecord,
    NodeRecord,
    PatternRecord,
    SourceRecord,
)
from fxfuse.rewriting import Editor
from fxfuse.view import Value, View
from fxfuse.view.leaves import innermost_roots, module_path, readable_path

_AROUND = 2
_MOST_LINES = 80
_SHOWN = 1
"""Of how many sites of one pattern and variant the nodes are kept, where nobody had asked for a report."""

Absolute = Callable[[str], str]
Known = Mapping[int, tuple[str, Sequence[str]]]


class Raw(NamedTuple):
    """A node as it was during the compile, in references to what is there anyway."""

    name: str
    op: str
    target: Any
    args: Any
    kwargs: Any
    inputs: tuple[str, ...]
    type: Any
    module: Any
    frame: str


class Taken:
    """The nodes of one graph, before and after; filled while it is rewritten, read when somebody asks."""

    def __init__(self, body: str, whole: bool) -> None:
        self.body = body
        self.whole = whole
        self.before: list[Raw] = []
        self.after: list[Raw] = []
        self.gone: set[str] = set()
        self.swept: dict[str, list[str]] = {}
        """By the last node of a site: nodes outside it that went away because only the site had read them."""
        self.paths: Mapping[str, str] = {}

    def record(self, absolute: Absolute) -> GraphRecord:
        """The graph as data."""
        files: dict[str, set[int]] = {}
        before = tuple(_node_record(raw, absolute, files, self.paths) for raw in self.before)
        known = {node.name: node for node in before}
        after = tuple(_same(known, _node_record(raw, absolute, files, self.paths)) for raw in self.after)
        return GraphRecord(0, self.body, self.whole, before, after, tuple(_sources(files)))


def _same(known: Mapping[str, NodeRecord], node: NodeRecord) -> NodeRecord:
    old = known.get(node.name)
    return old if old == node else node


class Recorder:
    """Takes down what one compile does.

    Args:
        whole: whether somebody will read the report, so that whole graphs are worth their time.
        known: position of an input -> its path in the graph and its paths in the model, where the caller knows them.
    """

    def __init__(self, whole: bool, known: Known) -> None:
        self.whole = whole
        self._known = known
        self._memo: Memo = {}
        self._sites: list[tuple[tuple[str, str], Callable[[], Site]]] = []
        self._patterns: list[tuple[Pattern, int, int, int, float]] = []
        self._full = {position: full[0] for position, (_, full) in known.items()}
        self._absolute: Absolute = partial(paths.absolute, known=list(known.values()))
        self._graphs: dict[fx.Graph, Taken] = {}

    def begin(self, graph: fx.Graph, body: str = "") -> None:
        """A graph that is looked at; ``body`` says where, if it is inside another."""
        self._graphs[graph] = Taken(body, self.whole)

    def searched(self, view: View, pattern: Pattern, found: Sequence[Found], seconds: float) -> None:
        """What the search for one pattern in one graph did."""
        ops = {term.op for form in pattern.forms for term in form.seeds} if not isinstance(pattern, Region) else ()
        tried = sum(len(view.find(op)) for op in ops)
        matched = sum(s.match is not None and s.reason is None for s in found)
        near = len(found) - matched
        self._patterns.append((pattern, tried, matched, near, seconds))

    def site(
        self,
        found: Found,
        failure: Failure | None,
        outcome: str,
        positions: Sequence[int],
        kernel: Kernel | None,
        placement: str,
        made: Sequence[fx.Node],
        **more: Any,
    ) -> int:
        """Take a site down, and say its place among all.

        Args:
            positions: of the inputs that its captures are; their paths say whose they are.
            more: fields of :class:`fxfuse.report.Site` that are known as they are.
        """
        taken = self._graphs.get(found.seed.node.graph)
        note = noted(found, failure, outcome, self._memo)
        stacks = [n.meta.get("nn_module_stack") for n in found.nodes]
        match = found.match
        captures: list[tuple[str, tuple[Any, ...]]] = []
        canonical: list[tuple[str, str, list[str], tuple[str, ...]]] = []
        derived = []
        through: list[str] = []
        device = None
        if match is not None:
            full = self._full
            captures = [(name, v) for name, captured in match.captures.items() for v in _captured(captured, full)]
            canonical = [(v.op, v.node.name, [n.name for n in v.nodes], v.steps) for v in match.interior]
            through = [n.name for n in match.seen_through]
            device = match.root.device
            for name, transform in kernel.derive if kernel is not None else ():
                settled, sources = transform.settle(match.captures)
                derived.append((name, settled, [v for s in sources for v in _captured(s, full)], placement))
        new = tuple([n.name for n in made])
        chosen = kernel.name if kernel is not None else ""
        known = self._known
        line = found.pattern.line

        def read() -> Site:
            return note.site(
                modules_of([readable_path(innermost(stack)) for stack in stacks], positions, known),
                pattern_line=short_path(line),
                body=taken.body if taken is not None else "",
                device=str(device) if device is not None else "",
                new_nodes=new,
                kernel=chosen,
                weights=placement if chosen else "",
                captures=Later(partial(_captures, captures)) if captures else (),
                canonical=Later(partial(_canonical, canonical)) if canonical else (),
                erased=Later(partial(_erased, (*note.nodes, *through), taken, note.root)) if new and taken else (),
                derived=Later(partial(_derived, derived)) if derived else (),
                **more,
            )

        self._sites.append(((found.pattern.name, outcome), read))
        return len(self._sites) - 1

    def sites(self) -> Sites:
        """The sites, made when somebody reads them."""
        return Sites(self._sites)

    def take(self, graph: fx.Graph, editor: Editor | None, matches: Iterable[tuple[Match, Sequence[fx.Node]]]) -> None:
        """Take a graph down, and what an editor that has finished made of it.

        Args:
            matches: what was rewritten, with the new nodes.
        """
        taken = self._graphs[graph]
        names: dict[Any, str] = {}
        matches = list(matches)
        if editor is not None:
            gone = editor.erased()
            taken.gone.update(n.name for n in gone)
            taken.swept = _swept(gone, [match for match, _ in matches])
        if self.whole:
            taken.before = [_raw(n, names) for n in graph.nodes]
            taken.after = [_raw(n, names) for n in editor.graph.nodes] if editor is not None else taken.before
            holders = (n.name for n in graph.find_nodes(op="placeholder"))
            taken.paths = {name: self._full[i] for i, name in enumerate(holders) if i in self._full}
            return
        inside: dict[fx.Node, None] = {}
        made: dict[fx.Node, None] = {}
        shown: Counter[tuple[Any, ...]] = Counter()
        for match, new in matches:
            kind = (match.pattern, *match.variant.items())
            shown[kind] += 1
            if shown[kind] > _SHOWN:
                continue
            inside.update(dict.fromkeys((*match.nodes, *match.seen_through)))
            made.update(dict.fromkeys(new))
        taken.before = [_raw(n, names) for n in _with_operands(inside)]
        taken.after = [_raw(n, names) for n in _with_operands(made)]

    def totals(self) -> Sequence[PatternRecord]:
        """What was done for each pattern, made when somebody reads it; patterns outlive their compiles anyway."""
        patterns = self._patterns
        kinds = [kind for kind, _ in self._sites]
        return Later(lambda: totals([_pattern_record(*one) for one in patterns], kinds))

    def records(self) -> Sequence[GraphRecord]:
        """The graphs, made when somebody reads them."""
        taken = [t for t in self._graphs.values() if t.before]
        absolute = self._absolute
        return Later(lambda: [t.record(absolute) for t in taken])


def modules_of(stacks: Iterable[str], positions: Iterable[int], known: Known) -> tuple[str, ...]:
    """The modules whose forward made a site, by the paths that the site's own parameters have.

    Args:
        stacks: the innermost module of each of its nodes.
        positions: the inputs of the graph that the site reads.
    """
    pairs = [known[position] for position in positions if position in known] or list(known.values())
    return tuple(paths.absolute(module, pairs) for module in innermost_roots(list(stacks)))


def _with_operands(nodes: Iterable[fx.Node]) -> dict[fx.Node, None]:
    """The nodes, each behind its operands."""
    found: dict[fx.Node, None] = {}
    for node in nodes:
        found.update(dict.fromkeys(node.all_input_nodes))
        found[node] = None
    return found


# --- taking down, while the graph is there ----------------------------------------------------------------------------


def _raw(node: fx.Node, names: dict[Any, str]) -> Raw:
    meta = node.meta
    target: Any = node.target
    if node.op == "placeholder":
        target = getattr(node, "_dynamo_source", None) or target
    elif not isinstance(target, str):
        name = names.get(target)
        target = names[target] = target_name(target) if name is None else name
    example = meta.get("example_value")
    return Raw(
        node.name,
        node.op,
        target,
        plain(node.args),
        plain(node.kwargs),
        tuple(n.name for n in node._input_nodes),
        form_of(example if example is not None else meta.get("val")),
        raw_path(node),
        last_frame(node),
    )


def _captured(captured: Any, full: Mapping[int, str]) -> list[tuple[Any, ...]]:
    if isinstance(captured, tuple):
        return [one for c in captured for one in _captured(c, full)]
    if not isinstance(captured, Value):
        return [(plain(captured), None, None, None)]
    leaf = captured.leaf
    path = full.get(leaf.position) if leaf is not None and leaf.position is not None else None
    return [(Ref(captured.node.name), leaf, path, form_of(captured.meta))]


# --- making records, when somebody reads them -------------------------------------------------------------------------


def _captures(raws: Sequence[tuple[str, tuple[Any, ...]]]) -> Iterable[CaptureRecord]:
    names = [name for name, _ in raws]
    seen: dict[str, int] = {}
    for name, (operand, leaf, path, form) in raws:
        number = seen[name] = seen.get(name, -1) + 1
        label = f"{name}[{number}]" if names.count(name) > 1 else name
        if operand is None:
            yield CaptureRecord(label, "absent")
        elif not isinstance(operand, Ref):
            yield CaptureRecord(label, "number", value=str(operand))
        else:
            kind = leaf.kind.value if leaf is not None else "computed"
            where = (path or leaf.path) if leaf is not None else ""
            yield CaptureRecord(label, kind, str(operand), where, type_words(form))


def _canonical(raws: Sequence[tuple[str, str, list[str], tuple[str, ...]]]) -> Iterable[CanonicalRecord]:
    return (CanonicalRecord(op, node, tuple(nodes), tuple(steps)) for op, node, nodes, steps in raws)


def _erased(inside: Sequence[str], taken: Taken, root: str) -> Iterable[str]:
    return [*(name for name in inside if name in taken.gone), *taken.swept.get(root, ())]


def _swept(gone: Iterable[fx.Node], matches: Iterable[Match]) -> dict[str, list[str]]:
    owner = {n: m.root.node.name for m in matches for n in (*m.nodes, *m.seen_through)}
    pending = [n for n in gone if n not in owner]
    found: dict[str, list[str]] = {}
    while pending:
        node = next((n for n in pending if any(user in owner for user in n.users)), None)
        if node is None:
            break
        pending.remove(node)
        owner[node] = next(owner[user] for user in node.users if user in owner)
        found.setdefault(owner[node], []).append(node.name)
    return found


def _derived(raws: Sequence[tuple[str, Any, list[tuple[Any, ...]], str]]) -> Iterable[DerivedRecord]:
    for name, transform, sources, placement in raws:
        forms = [form for *_, form in sources]
        shapes, dtypes = [form[1] for form in forms], [form[0] for form in forms]
        made, size = "", 0
        if all(isinstance(s, int) for shape in shapes for s in shape):
            made = type_words((dtypes[0], tuple(transform.shape(shapes))))
            size = transform.bytes(shapes, dtypes)
        labels = tuple((path or leaf.path) if leaf is not None else str(node) for node, leaf, path, _ in sources)
        types = tuple(map(type_words, forms))
        yield DerivedRecord(name, str(transform), tuple(transform.sources), labels, types, made, size, placement)


def _node_record(raw: Raw, absolute: Absolute, files: dict[str, set[int]], known: Mapping[str, str]) -> NodeRecord:
    frame = FRAME.search(raw.frame)
    line = text = ""
    if frame is not None:
        file, number, text = frame.groups()
        line = f"{os.path.basename(file)}:{number}"
        files.setdefault(file, set()).add(int(number))
    if raw.op == "placeholder":
        path = known.get(raw.name) or (raw.target if isinstance(raw.target, str) else module_path(raw.target))
        code = f"input {path}" if path != raw.name else "input"
    else:
        code = code_of(raw.op, raw.target, raw.args, raw.kwargs)
    module = absolute(readable_path(raw.module)) if raw.module else ""
    return NodeRecord(raw.name, code, raw.inputs, type_words(raw.type), module, line, text.strip()[:LONGEST_LINE])


def _sources(files: Mapping[str, set[int]]) -> Iterable[SourceRecord]:
    """The lines around those that nodes come from, as far as the files are there."""
    for file, numbers in files.items():
        if not linecache.getline(file, max(numbers)):
            continue
        wanted = sorted({n for number in numbers for n in range(max(1, number - _AROUND), number + _AROUND + 1)})
        yield from _runs(file, wanted[:_MOST_LINES])


def _runs(file: str, numbers: Sequence[int]) -> Iterable[SourceRecord]:
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            run = numbers[start:i]
            lines = (linecache.getline(file, n).rstrip()[:LONGEST_LINE] for n in run)
            yield SourceRecord(os.path.basename(file), run[0], tuple(lines))
            start = i


def source_of(pattern: Pattern) -> SourceRecord | None:
    """The pattern's own source, as far as its file is there."""
    try:
        lines, start = inspect.getsourcelines(inspect.unwrap(pattern.function))
    except (OSError, TypeError):
        return None
    kept = tuple(line.rstrip()[:LONGEST_LINE] for line in lines[:_MOST_LINES])
    return SourceRecord(short_path(Line(pattern.line.file, start)).rpartition(":")[0], start, kept)


def _pattern_record(pattern: Pattern, tried: int, matched: int, near: int, seconds: float) -> PatternRecord:
    where = short_path(pattern.line)
    return PatternRecord(pattern.name, where, tried, matched, near, 0, seconds * 1e3, source_of(pattern))


def totals(patterns: Iterable[PatternRecord], kinds: Iterable[tuple[str, str]]) -> tuple[PatternRecord, ...]:
    """One record for each pattern, over several graphs, with what was rewritten; ``kinds``: pattern and outcome."""
    rewritten = Counter(name for name, outcome in kinds if outcome == "rewritten")
    found: dict[str, PatternRecord] = {}
    for one in patterns:
        sum_ = found.get(one.name, replace(one, tried=0, matched=0, near=0, ms=0.0))
        found[one.name] = replace(
            sum_,
            tried=sum_.tried + one.tried,
            matched=sum_.matched + one.matched,
            near=sum_.near + one.near,
            ms=sum_.ms + one.ms,
            rewritten=rewritten[one.name],
        )
    return tuple(found.values())
