"""Two reports compared: sites gained, lost and changed. For upgrades, option sets, versions of a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fxfuse.report.record import Report, Site
from fxfuse.report.text import masked, merge_paths

KINDS = ("lost", "gained", "variant", "reason", "kernel")
"""``lost``: was rewritten and is not; ``gained``: the other way; else what of a site changed."""

_DONE = {"rewritten", "matched"}


@dataclass(frozen=True)
class Change:
    """One site that differs. ``before`` or ``after`` is None where the other report has no such row."""

    kind: str
    before: Site | None
    after: Site | None

    @property
    def site(self) -> Site:
        found = self.after or self.before
        assert found is not None
        return found


def diff(before: Report, after: Report) -> list[Change]:
    """What differs, in the order of ``KINDS``. Sites are the same where pattern, modules and their count there are."""
    old, new = _keyed(before.sites), _keyed(after.sites)
    changes = [_change(old.get(key), new.get(key)) for key in dict.fromkeys([*old, *new])]
    return sorted((c for c in changes if c is not None), key=lambda c: KINDS.index(c.kind))


def render(changes: Sequence[Change]) -> str:
    """The differences as text, equal ones together."""
    if not changes:
        return "no site differs"
    counts = {kind: sum(c.kind == kind for c in changes) for kind in KINDS}
    lines = ["sites: " + ", ".join(f"{n} {_TITLES[kind]}" for kind, n in counts.items() if n)]
    groups: dict[tuple[str, ...], list[Change]] = {}
    for change in changes:
        words = _words(change)
        key = (change.kind, change.site.pattern, masked(words), *map(masked, change.site.modules))
        groups.setdefault(key, []).append(change)
    for group in groups.values():
        first = group[0]
        where = merge_paths([c.site.modules for c in group])
        lines.append(f"  {_MARKS[first.kind]} {first.kind:<8}x{len(group)} {first.site.pattern}  {where}")
        lines.append(f"      {_words(first)}")
    return "\n".join(lines)


_TITLES = {
    "lost": "lost", "gained": "gained", "variant": "of another variant", "reason": "left for another reason",
    "kernel": "with another kernel or placement",
}  # fmt: skip
_MARKS = {"lost": "-", "gained": "+", "variant": "~", "reason": "~", "kernel": "~"}


def _keyed(sites: Iterable[Site]) -> dict[tuple[object, ...], Site]:
    found: dict[tuple[object, ...], Site] = {}
    for site in sites:
        number = 0
        while (site.pattern, site.modules, number) in found:
            number += 1
        found[site.pattern, site.modules, number] = site
    return found


def _change(before: Site | None, after: Site | None) -> Change | None:
    was = before is not None and before.outcome in _DONE
    is_ = after is not None and after.outcome in _DONE
    if was != is_:
        return Change("lost" if was else "gained", before, after)
    if before is None or after is None:
        return Change("reason", before, after)
    if dict(before.variant) != dict(after.variant):
        return Change("variant", before, after)
    if (before.outcome, before.code, masked(before.reason)) != (after.outcome, after.code, masked(after.reason)):
        return Change("reason", before, after)
    if (before.kernel, before.weights) != (after.kernel, after.weights):
        return Change("kernel", before, after)
    return None


def _words(change: Change) -> str:
    return f"{_state(change.before, change.kind)} -> {_state(change.after, change.kind)}"


def _state(site: Site | None, kind: str) -> str:
    if site is None:
        return "not there"
    variant = " ".join(f"{k}={v}" for k, v in site.variant.items())
    if kind == "variant":
        return variant or "no variant"
    if site.outcome in _DONE:
        return f"{site.outcome} {variant} kernel={site.kernel} weights={site.weights}".replace("  ", " ")
    return f"{site.outcome} {site.code}: {site.reason}"
