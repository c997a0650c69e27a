"""`explain`: what one call would compile, captured and matched, through graph breaks, without compiling it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from fxfuse import compat, reuse
from fxfuse.engine import Fused, fuse, with_graph_number
from fxfuse.errors import CaptureError
from fxfuse.expectations import judge
from fxfuse.numerics.state import preserved
from fxfuse.options import Options, parse
from fxfuse.recording import totals
from fxfuse.report import Report


def explain(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
) -> Report:
    """What ``torch.compile(model, backend="fxfuse", options=options)`` would do on this call.

    The model runs once, in eager; random state, buffers and tensors that it writes in place are restored; no parameter
    is moved. Sites of all graphs are in one report, with absolute module paths.

    Args:
        model: a module or function; one that is compiled already is looked at underneath.
        args, kwargs: of the call, as for ``torch.export.export``.
        options: fxfuse's options; ``expect`` and its kind are judged over the whole call.

    Raises:
        OptionError: a bad option.
        ExpectationError: a count, glob or named pattern that the call does not meet.
        CaptureError: Dynamo captured no graph.
        TypeError: ``args`` is not a sequence of positional arguments.
    """
    args = positional("explain", args)
    parsed = parse(options)
    reports = capture(model, args, kwargs or {}, parsed)
    merged = merge(reports, parsed)
    judge(merged, parsed, whole=True)
    return merged


def positional(caller: str, args: Any) -> Sequence[Any]:
    """The positional arguments of a call, as they were given; a lone tensor is the usual mistake."""
    if isinstance(args, torch.Tensor) or not isinstance(args, Sequence):
        raise TypeError(f"{caller} takes args as a tuple of positional arguments; given {type(args).__name__}.")
    return args


Runner = Callable[[fx.GraphModule, Fused], Callable[..., Any]]


def capture(
    model: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Options,
    runner: Runner = lambda gm, fused: gm.forward,
) -> list[Report]:
    """One report for each graph that Dynamo captures in one eager call of the model.

    Args:
        runner: gives what runs a captured graph, for whoever wants to see its values.
    """
    model = getattr(model, "_orig_mod", model)
    names: dict[int, list[str]] = {}
    if isinstance(model, torch.nn.Module):
        for path, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(path)
    reports: list[Report] = []
    failures: list[Exception] = []
    looked_at: dict[Any, int] = {}

    def look(gm: fx.GraphModule, examples: list[Any]) -> Any:
        place = compat.code_being_compiled()
        if place is not None:
            looked_at.setdefault(*place)
        try:
            fused = fuse(gm, examples, options, names=names, record=True)
            fused.report.reuse = (reuse.foresee(fused.gm, examples, options, fused.new_nodes),)
            reports.append(with_graph_number(fused.report, len(reports)))
            return saved.guarding(gm, runner(gm, fused))
        except Exception as error:  # Dynamo would wrap it; it is raised below as it is
            failures.append(error)
            return gm.forward

    try:
        with underneath(model), preserved(model, args, kwargs) as saved, compat.without_recompile_limits():
            compat.isolated_compile(model, look)(*args, **kwargs)
    finally:
        for code, entries in looked_at.items():
            if entries == 0:  # ours are all that there are, and they count towards the user's recompile limit
                compat.forget_code(code)
    if failures:
        raise failures[0]
    if not reports:
        raise CaptureError(
            "Dynamo captured no graph in this call: the model ran in eager only. Common causes: torch.compile is "
            "disabled here (torch.compiler.disable, a stance), or the call does nothing with tensors."
        )
    return reports


def merge(reports: Sequence[Report], options: Options) -> Report:
    """One report over several graphs of one call."""
    seconds: dict[str, float] = {}
    for report in reports:
        for phase, time in report.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + time
    return Report(
        sites=tuple(s for r in reports for s in r.sites),
        graphs=len(reports),
        nodes=sum(r.nodes for r in reports),
        options=options.describe(),
        versions=reports[0].versions,
        seconds=seconds,
        notes=tuple(n for r in reports for n in r.notes),
        patterns=totals([p for r in reports for p in r.patterns], [kind for r in reports for kind in r.kinds]),
        captured=tuple(g for r in reports for g in r.captured),
        reuse=tuple(u for r in reports for u in r.reuse),
    )


@contextlib.contextmanager
def underneath(model: Any) -> Iterator[None]:
    """For the time of the call, modules compiled in place (``module.compile()``) run as they were."""
    compiled = []
    if isinstance(model, torch.nn.Module):
        compiled = [m for m in model.modules() if m._compiled_call_impl is not None]
    saved = [m._compiled_call_impl for m in compiled]
    try:
        for module in compiled:
            module._compiled_call_impl = None
        yield
    finally:
        for module, call in zip(compiled, saved, strict=True):
            module._compiled_call_impl = call
