"""A report on a terminal: colours where there is one, plain text where there is none."""

from __future__ import annotations

import re
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from fxfuse.report import Report
from fxfuse.report.hunks import hunk
from fxfuse.report.text import grouped, render

_STYLES = (
    (re.compile(r"^fxfuse: .*"), "bold"),
    (re.compile(r"^\w[\w:]*(?=: \d)"), "bold cyan"),
    (re.compile(r"\d+ rewritten"), "green"),
    (re.compile(r"\d+ kept"), "yellow"),
    (re.compile(r"\d+ missed"), "red"),
    (re.compile(r"^  x\d+ "), "bold"),
    (re.compile(r"^     [A-Z_]+(?=  )"), "bold red"),
    (re.compile(r"^       (pattern|graph|reader|writer) .*"), "dim"),
    (re.compile(r"^      > .*"), "bold red"),
    (re.compile(r"^      - .*"), "red"),
    (re.compile(r"^      \+ .*"), "green"),
)


def filtered(report: Report, *, at: str | None, pattern: str | None, only: str | None) -> Report:
    """The report with the sites that were asked for."""

    def wanted(modules: tuple[str, ...]) -> bool:
        return at is None or any(m == at or m.startswith(f"{at}.") or at.startswith(f"{m}.") for m in modules if m)

    sites = (s for s in report.sites if pattern in (None, s.pattern) and only in (None, s.outcome))
    return replace(report, sites=tuple(s for s in sites if wanted(s.modules)))


def part(report: Report, shown: Report) -> str:
    """What of the whole report is shown, where that is a part."""
    if len(shown.sites) == len(report.sites):
        return ""
    return f"{report.summary()}\nshown: {len(shown.sites)} of its {len(report.sites)} sites"


def lines(report: Report, *, code: bool) -> list[str]:
    """The report as text; ``code`` puts under each group the lines of its first site."""
    text = render(report).splitlines()
    if not code:
        return text
    for group in grouped(report):
        first = group[0]
        changed = hunk(report, first)
        if changed:
            where = " + ".join(m or "(top level)" for m in first.modules)
            text += ["", f"{first.pattern} at {where}: {first.outcome}", *(f"      {line}" for line in changed)]
    return text


def show(report: Report, console: Console, *, whole: Report, code: bool = False) -> None:
    """Print the report, which may be a part of a whole one."""
    head = part(whole, report)
    text_of = lines(report if not head else replace(report, seconds={}, reuse=(), notes=()), code=code)
    for line in [*head.splitlines(), *text_of[1:]] if head else text_of:
        text = Text(line)
        for pattern, style in _STYLES:
            text.highlight_regex(pattern, style)
        console.print(text, highlight=False, soft_wrap=True)
