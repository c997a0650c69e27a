"""A report as text: a line a pattern, equal sites grouped, reasons with both source lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from fxfuse.errors import listed
from fxfuse.report import regions
from fxfuse.report.record import ReasonRecord, Report, Site

_ORDER = ("matched", "rewritten", "kept", "missed")
_NEARER = {"fused": "fused is nearer", "eager": "eager is nearer", "equal": "both are as near"}
_MOST = 3
"""How many further reasons, and how many alternatives, are shown of a site; the record has them all."""


def render(report: Report) -> str:
    """The whole report, deterministic."""
    lines = [report.summary()]
    if not report.sites and report.patterns:
        lines += ["", looked_for(report)]
    patterns = sorted({s.pattern for s in report.sites})
    for pattern in patterns:
        lines += ["", *_pattern(pattern, [s for s in report.sites if s.pattern == pattern])]
    lines += regions.render(report.reuse)
    lines += [f"note: {note}" for note in report.notes]
    if report.seconds:
        own = ", ".join(f"{phase} {t * 1e3:.0f} ms" for phase, t in report.seconds.items() if phase != "inner")
        inner = f"; inner compiler {report.seconds['inner']:.1f} s" if "inner" in report.seconds else ""
        lines += ["", f"time: fxfuse itself {report.own_seconds:.2f} s ({own}){inner}"]
    return "\n".join(lines)


def looked_for(report: Report) -> str:
    """What to say where there is no site: what was looked for."""
    names = listed(p.name for p in report.patterns)
    return f'No place looks like {names}. Other patterns are looked for where options={{"patterns": [...]}} names them.'


def _pattern(pattern: str, sites: list[Site]) -> list[str]:
    counts = {o: sum(s.outcome == o for s in sites) for o in _ORDER}
    reasons = len({(s.code, masked(s.reason)) for s in sites if s.outcome == "missed"})
    parts = [f"{n} {o}" for o, n in counts.items() if n]
    if reasons:
        parts[-1] += f" ({reasons} reason{'s' if reasons > 1 else ''})"
    lines = [f"{pattern}: {', '.join(parts)}"]
    groups: dict[tuple[object, ...], list[Site]] = {}
    for site in sorted(sites, key=lambda s: _ORDER.index(s.outcome)):
        groups.setdefault(group_key(site), []).append(site)
    for group in groups.values():
        lines += _group(group)
    return lines


def grouped(report: Report) -> list[list[Site]]:
    """Sites that differ in their layer only, together, in the order of the text."""
    groups: dict[tuple[object, ...], list[Site]] = {}
    for site in sorted(report.sites, key=lambda s: (s.pattern, _ORDER.index(s.outcome))):
        groups.setdefault((site.pattern, *group_key(site)), []).append(site)
    return list(groups.values())


def render_site(site: Site) -> str:
    """One site, as in a report."""
    return "\n".join([site.pattern, *_group([site])])


def group_key(site: Site) -> tuple[object, ...]:
    shape = tuple(map(masked, site.modules))
    reason = masked(site.reason)
    place = site.detail.pattern_line if site.detail else ""
    facts = (site.kernel, _measurement(site), site.weights, site.matched_nodes, place, site.numbers is None)
    return site.outcome, tuple(sorted(site.variant.items())), shape, site.code, reason, *facts


def masked(text: str) -> str:
    """Equal for texts that differ only in numbers, of layers, nodes or errors; ``view`` and ``view_3`` are alike."""
    return re.sub(r"\d+(\.\d+e[+-]\d+)?", "#", re.sub(r"_\d+\b", "", text))


def _group(group: Sequence[Site]) -> list[str]:
    first = group[0]
    variant = " ".join(f"{k}={v}" for k, v in first.variant.items())
    if first.outcome == "missed":
        what = f"{first.matched_nodes} of {first.pattern_nodes} nodes matched, {variant}".rstrip(", ")
    elif first.outcome in {"kept", "matched"}:
        what = variant
    else:
        shared, extra = sum(s.shared_bytes for s in group), sum(s.extra_bytes for s in group)
        weights = first.weights + (f" ({bytes_words(shared)} in place)" if shared else "")
        what = f"{variant}  kernel={first.kernel}{_measurement(first)} weights={weights}".lstrip()
        what += f" +{bytes_words(extra)}" if extra else ""
    lines = [f"  x{len(group)} {merge_paths([s.modules for s in group])}  {what}".rstrip()]
    if first.outcome != "rewritten" and first.detail is not None:
        lines += _reason(first.detail, first.modules)
        further = (r for r in first.also if r.sentence != first.detail.sentence)
        also = dict.fromkeys(_in_short(r, first.modules) for r in further)
        lines += [f"     also: {text}" for text in list(also)[:_MOST]]
        lines += [f"     also tried: {text}" for text in _tried(first.detail)[:_MOST]]
    measured = [s.numbers for s in group if s.numbers is not None and s.numbers.within]
    if measured:
        worst = max(measured, key=lambda n: n.fused_max / (n.allowed_max or 1.0))
        lines.append(f"     verified, off from float64 by {worst}")
        if worst.nearer:
            lines.append(f"       mean {worst.fused_mean:.1e} (eager {worst.eager_mean:.1e}); {_NEARER[worst.nearer]}")
        if worst.ulps:
            lines.append(f"       ulps off: {', '.join(f'{k}: {v}' for k, v in worst.ulps.items())}")
    notes = dict.fromkeys(note for s in group for note in s.notes)
    return lines + [f"     note: {note}" for note in notes]


def _measurement(site: Site) -> str:
    """What is known of the kernel's speed, where nobody asked for it by name."""
    ratio = re.search(r"(\d+\.\d+x) as fast as left alone", site.why_kernel)
    if ratio is not None:
        return f" ({ratio.group(1)} as fast)"
    return " (not measured)" if "not measured" in site.why_kernel else ""


def _reason(reason: ReasonRecord, modules: Sequence[str]) -> list[str]:
    lines = [f"     {reason.code}  {reason.sentence}"]
    elsewhere = reason.graph_path if reason.graph_path not in modules else ""
    node = _in(_typed(reason.graph_node, reason.graph_type), elsewhere)
    other = "writer" if reason.code == "MUTATION" else "reader"
    rows = [
        ("pattern", "", reason.pattern_line, reason.pattern_text),
        ("graph", node, reason.graph_line, reason.graph_text),
        (other, _in(reason.reader_node, reason.reader_path), reason.reader_line, reason.reader_text),
    ]
    if reason.reader_node == reason.graph_node:
        rows.pop()
    rows = [r for r in rows if r[1] or r[2]]
    for label, node, line, text in rows:
        place = f"{node}  {line}" if node and line else node or line
        lines.append(f"       {label:<8} {place:<48}  {text}".rstrip())
    return lines


def _in_short(reason: ReasonRecord, modules: Sequence[str]) -> str:
    """A further reason in one line."""
    where = f", in {reason.graph_path}" if reason.graph_path and reason.graph_path not in modules else ""
    if reason.reader_node:
        where = f", by {_in(reason.reader_node, reason.reader_path)}"
    return f"{reason.sentence}{where} ({reason.code})"


def _tried(reason: ReasonRecord) -> list[str]:
    """The alternatives in question, those together that met the same; where one was taken, what began to fit."""
    groups: dict[tuple[str, str], list[ReasonRecord]] = {}
    for tried in reason.tried:
        choice = tried.alternative.partition("=")[0]
        headline = reason.code == "ALTERNATIVES" and choice == reason.at
        alike = (tried.at, tried.code, tried.found) == (reason.at, reason.code, reason.found)
        if headline or (tried.matched and not tried.settled and not alike):
            groups.setdefault((choice, f"{tried.code} {tried.found}".rstrip()), []).append(tried)
    lines = []
    for (choice, stopped), group in groups.items():
        labels = listed([t.alternative.partition("=")[2] for t in group])
        places = listed(list(dict.fromkeys(t.at for t in group if t.at)))
        lines.append(f"{choice}={labels}, stopped at {places} ({stopped})")
    return lines


def _typed(node: str, kind: str) -> str:
    return f"{node}: {kind}" if node and kind else node


def _in(node: str, path: str) -> str:
    return f"{node} ({path})" if node and path else node


def bytes_words(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def merge_paths(groups: Iterable[Sequence[str]]) -> str:
    """``model.layers.{0-29}.mlp`` for thirty paths that differ in one number; several paths joined by `` + ``."""
    columns = list(zip(*groups, strict=True))
    return " + ".join(_merge(column) for column in columns) or "(top level)"


def _merge(paths: Sequence[str]) -> str:
    unique = list(dict.fromkeys(paths))
    if len(unique) == 1:
        return unique[0] or "(top level)"
    split = [re.split(r"(\d+)", p) for p in unique]
    if len({len(s) for s in split}) != 1:
        return ", ".join(unique)
    columns = [list(dict.fromkeys(pieces)) for pieces in zip(*split, strict=True)]
    if sum(len(c) > 1 for c in columns) > 1:
        return ", ".join(unique)  # merged, they would name modules that are not there
    return "".join(c[0] if len(c) == 1 else _ranges(c) for c in columns)


def _ranges(items: Sequence[str]) -> str:
    if not all(i.isdigit() for i in items):
        return "{" + ",".join(items) + "}"
    numbers = sorted(map(int, items))
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return "{" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) + "}"
