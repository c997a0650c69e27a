"""The door for the backend and for ``explain``: divide a graph where that is sound and saves something."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import fx

from fxfuse import compat
from fxfuse.describe import source_line
from fxfuse.errors import first_line, warn_once
from fxfuse.options import Options
from fxfuse.report.regions import RegionRecord, ReuseRecord
from fxfuse.reuse.hazards import LeftWhole
from fxfuse.reuse.plan import Kind, Plan, plan
from fxfuse.reuse.running import Compiled, Compiler, compile_divided
from fxfuse.reuse.written import with_written
from fxfuse.view.leaves import stack_path


def compile_graph(
    gm: fx.GraphModule,
    examples: Sequence[Any],
    options: Options,
    compiler: Compiler,
    sites: Collection[fx.Node] = frozenset(),
) -> tuple[Compiled, ReuseRecord]:
    """The compiled graph: its repeated regions once each, or the graph as one, and which of the two.

    Args:
        sites: the operations that rewrites put there; they are compiled in any case.
    """
    start = perf_counter()
    try:
        made = _plan(gm, examples, options, sites)
        if made.divided:
            planned = perf_counter() - start
            divided = compile_divided(gm, made, compiler)
            return divided.run, ReuseRecord(_rows(made, divided.seconds), "", planned)
        reason, as_asked = made.reason, made.as_asked
    except LeftWhole as why:
        reason, as_asked = str(why), False
    except Exception as error:
        if options.on_error == "raise":
            raise
        reason, as_asked = f"REWRITE_ERROR: {first_line(error)}", False
        warn_once(f"fxfuse compiles a graph whole ({reason})")
    record = ReuseRecord((), reason, perf_counter() - start, as_asked)
    return compiler(gm, list(examples)), record


def foresee(
    gm: fx.GraphModule, examples: Sequence[Any], options: Options, sites: Collection[fx.Node] = frozenset()
) -> ReuseRecord:
    """What :func:`compile_graph` would do, with nothing compiled and so nothing measured."""
    start = perf_counter()
    try:
        made = _plan(gm, examples, options, sites)
    except Exception as error:
        if options.on_error == "raise":
            raise
        made = Plan(None, reason=f"REWRITE_ERROR: {first_line(error)}")
    rows = _rows(made, [None] * len(made.kinds)) if made.divided else ()
    return ReuseRecord(rows, made.reason, perf_counter() - start, made.as_asked)


def _plan(gm: fx.GraphModule, examples: Sequence[Any], options: Options, sites: Collection[fx.Node]) -> Plan:
    if options.reuse == "off":
        return Plan(None, reason="reuse='off'", as_asked=True)
    if options.inner == "eager":
        return Plan(None, reason="inner='eager' compiles nothing", as_asked=True)
    reason = _refused(gm, options)
    if reason:
        return Plan(None, reason=reason)
    made = plan(gm, examples)
    return with_written(made, sites) if made.divided and options.inner == "inductor" else made


def _refused(gm: fx.GraphModule, options: Options) -> str:
    """Why Inductor's options, or whoever compiles, rule it out; empty where they do not."""
    if compat.inside_ddp_optimizer():
        return "DistributedDataParallel's optimizer divides the graph itself"
    if options.inner != "inductor":
        return ""
    given = {**compat.mode_options(options.mode or "default"), **dict(options.inner_options)}
    if compat.inductor_flag("freezing", given):
        return "freezing makes a layer's weights part of its code"
    if not compat.inductor_flag("keep_output_stride", given):
        return "keep_output_stride is off, so a region may hand on other strides than the next expects"
    if compat.inductor_flag("triton.cudagraphs", given) and _on_cuda(gm):
        return "CUDA graphs record a graph as one; recording regions is not measured"
    return ""


def _on_cuda(gm: fx.GraphModule) -> bool:
    values = (node.meta.get("example_value") for node in gm.graph.nodes)
    return any(isinstance(v, torch.Tensor) and v.is_cuda for v in values)


def _rows(made: Plan, seconds: Sequence[float | None]) -> tuple[RegionRecord, ...]:
    return tuple(_row(kind, taken) for kind, taken in zip(made.kinds, seconds, strict=True))


def _row(kind: Kind, seconds: float | None) -> RegionRecord:
    nodes = [node for node in kind.first.nodes if node.op != "get_attr"]
    modules = tuple(dict.fromkeys(path for node in nodes if (path := stack_path(node))))
    reads, gives = len(kind.first.reads), len(kind.gives)
    begins, ends = _place(nodes[0]), _place(nodes[-1])
    return RegionRecord(kind.copies, len(nodes), modules, begins, ends, reads, gives, seconds, kind.as_written)


def _place(node: fx.Node) -> str:
    """A node, and the line of the model's code that made it."""
    return "  ".join(part for part in (node.name, *source_line(node)) if part)
