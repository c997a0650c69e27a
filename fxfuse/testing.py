"""For users' test suites: that a model is fused as expected, as a failing test instead of a slow month."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fxfuse.capture import explain
from fxfuse.errors import OptionError
from fxfuse.options import parse
from fxfuse.report import Report


def assert_fused(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    expect: Mapping[str, int],
    options: Mapping[str, Any] | None = None,
) -> Report:
    """Assert that one call rewrites exactly these counts of sites.

    Args:
        expect: pattern name -> sites that must be rewritten.

    Returns:
        The report of the call.

    Raises:
        AssertionError: a count differs; the message is the report's text.
        OptionError: a bad option or an unknown pattern.
    """
    given = dict(options or {})
    if "expect_rewritten" in given:
        raise OptionError("assert_fused takes its counts as expect=, not as the option expect_rewritten.")
    expect = dict(parse({**given, "expect_rewritten": expect}).expect_rewritten)
    report = explain(model, args, kwargs, options=given)
    for name, count in expect.items():
        found = report.rewritten[name]
        if found != count:
            raise AssertionError(f"{count} rewritten sites of {name!r} were expected, {found} found.\n\n{report}")
    return report
