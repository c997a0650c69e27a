"""Expectations: `expect`, `expect_rewritten`, `paths` and `on_miss`, judged against a report."""

from __future__ import annotations

import warnings

from fxfuse import paths
from fxfuse.errors import ExpectationError
from fxfuse.options import Options
from fxfuse.report import Report


def unmet(report: Report, options: Options) -> list[str]:
    """Sentences for the counts that differ and the globs that hit nothing."""
    problems = []
    for key, counts, wanted in (
        ("expect", report.matched, options.expect),
        ("expect_rewritten", report.rewritten, options.expect_rewritten),
    ):
        for name, count in wanted:
            if counts[name] != count:
                verb = "matched" if key == "expect" else "were rewritten"
                problems.append(
                    f"{key}: {count} sites of {name} were expected, {counts[name]} {verb}.{_why(report, name)}"
                )
    modules = {m for s in report.sites for m in s.modules}
    for glob in options.paths:
        if not any(paths.hits(glob, m) for m in modules):
            seen = ", ".join(sorted(modules)[:6]) or "none"
            problems.append(f"paths: {glob!r} hits no site; sites are in: {seen}.")
    return problems


def unmatched(report: Report, options: Options) -> list[str]:
    """The patterns that the user named and that matched nowhere."""
    return [p.name for p in options.patterns if p.name in options.named and not report.matched[p.name]]


def judge(report: Report, options: Options, *, whole: bool) -> None:
    """Raise or warn as the options say.

    Args:
        whole: the report covers all that the user compiles at once; counts of a part only warn.

    Raises:
        ExpectationError: a count differs, a glob hits nothing, or a named pattern has no match (``on_miss="error"``).
    """
    problems = unmet(report, options)
    misses = unmatched(report, options) if options.on_miss != "silent" else []
    silent_misses = [
        f"pattern {name!r} was named and matched nowhere in this graph.{_why(report, name)}" for name in misses
    ]
    if options.on_miss == "error":
        problems += silent_misses
    else:
        for sentence in silent_misses:
            warnings.warn(f"fxfuse: {sentence}", stacklevel=3)
    if problems and whole:
        raise ExpectationError(" ".join(problems))
    for problem in problems:
        warnings.warn(f"fxfuse: {problem} (judged for one graph of possibly several)", stacklevel=3)


def _why(report: Report, name: str) -> str:
    sites = [s for s in report.sites if s.pattern == name]
    reasons = [f"{s.code} {s.reason}" for s in sites if s.code]
    if reasons:
        return f" First reason: {reasons[0]}."
    return "" if sites else " No place in the graph looks like it."
