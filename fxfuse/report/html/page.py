"""The page: Jinja fills the template, which holds style, script and data; everything of the user's model is escaped."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fxfuse.report.html.model import data_of, groups_of, label_of, words_of
from fxfuse.report.record import Report
from fxfuse.report.text import bytes_words, looked_for

_UNSAFE = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def page(report: Report) -> str:
    """The report as one HTML file that needs nothing beside it."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_asset("page.html"))
    codes = {(g.number, g.body, n.name): n.code for g in report.captured for n in g.before}
    words = []
    for site in report.sites:
        labels = {label_of(codes[key]) for n in site.nodes if (key := (site.graph, site.body, n)) in codes}
        words.append(words_of(site, sorted(labels | {c.op for c in site.canonical})))
    made = template.render(
        report=report,
        groups=groups_of(report),
        words=words,
        patterns=report.patterns,
        outcomes=[(o, n) for o in ("rewritten", "kept", "missed", "matched") if (n := _count(report, o))],
        codes=sorted({s.code for s in report.sites if s.code}),
        names=sorted({s.pattern for s in report.sites}),
        shared=bytes_words(sum(s.shared_bytes for s in report.sites)),
        extra=bytes_words(sum(s.extra_bytes for s in report.sites)),
        text=str(report),
        nothing=looked_for(report) if report.patterns else "No place in what was compiled looked like a pattern.",
        options=json.dumps(dict(report.options), indent=1, default=str),
        data=embedded(data_of(report)),
        style=Markup(_asset("page.css")),
        script=Markup(_asset("page.js")),
    )
    return made.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair can be in a name, and in no file


def embedded(data: Any) -> Markup:
    """JSON that may stand inside a script element, whatever strings it holds."""
    return Markup(json.dumps(data, separators=(",", ":"), default=str).translate(_UNSAFE))


def _count(report: Report, outcome: str) -> int:
    return sum(s.outcome == outcome for s in report.sites)


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
