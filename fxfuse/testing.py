"""For test suites of users and of packs: that a model is fused as expected, and that a Triton kernel compiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fxfuse.capture import explain
from fxfuse.errors import OptionError
from fxfuse.options import parse
from fxfuse.report import Report

if TYPE_CHECKING:
    from fxfuse.kernels.triton.compile_only import Resources


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


def assert_compiles(
    kernel: Any, signature: Mapping[str, str], constants: Mapping[str, Any], *, num_warps: int = 4
) -> dict[str, Resources]:
    """Assert that a Triton kernel compiles for sm_80, sm_90, sm_100 and gfx942, spills nothing and fits. Needs no GPU.

    Args:
        kernel: the ``triton.jit`` function.
        signature: the type of each argument that is no constant: ``"*bf16"``, ``"i32"``, ``"fp32"``.
        constants: the value of each ``tl.constexpr``.

    Returns:
        What it uses of each card: ``registers``, ``spills``, ``shared``.

    Raises:
        AssertionError: it spills registers or wants more shared memory than a program may have.
        PatternError: an argument without a type or value, or one that the kernel does not have.
        RuntimeError: in Triton's interpreter, where there is nothing to compile.
    """
    from fxfuse.kernels.triton.portable import compile_for_every_card  # imports Triton

    used = compile_for_every_card(kernel, signature, constants, num_warps)
    problems = [one.problem for one in used.values() if one.problem]
    if problems:
        raise AssertionError("; ".join(problems))
    return used
