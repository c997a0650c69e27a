"""`tune` measures the sites of a model, `tune_pattern` a pattern at given sizes; both keep what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fxfuse import library, results
from fxfuse.authoring import Pattern, Region
from fxfuse.authoring.captures import is_param
from fxfuse.authoring.sizes import dims_in
from fxfuse.capture import capture, positional
from fxfuse.checking.examples import Example
from fxfuse.checking.sizing import Sizing, size_for
from fxfuse.checking.ways import Way, ways
from fxfuse.engine import Fused
from fxfuse.errors import OptionError, unknown
from fxfuse.kernels import REFERENCE, facts_of, kernels_for
from fxfuse.kernels.choice import shape_of
from fxfuse.options import parse
from fxfuse.results import Entry, Shape
from fxfuse.tuning.site import Found, measure_site
from fxfuse.tuning.timing import Bench

Progress = Callable[[str], None]


def tune(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    patterns: Sequence[Pattern | str] | None = None,
    inner: str = "inductor",
    mode: str | None = None,
    bench: Bench | None = None,
    keep: bool = True,
    progress: Progress | None = None,
) -> list[Entry]:
    """Measure every kernel at the sites of one call of a model, one site of each shape, and keep the results.

    The next compile of this process, and of any other on this machine, chooses by them. The call runs once in eager,
    without grad mode; the sites are then measured one by one, on random values of their shapes.

    Args:
        model, args, kwargs: as for :func:`fxfuse.explain`.
        patterns: names or Pattern objects; those active by default, where None.
        inner, mode: what compiles every arm, as in :class:`fxfuse.Backend`.
        bench: how long and how carefully is measured.
        keep: whether the results are written; they are returned in any case.
        progress: is told what is measured next.

    Raises:
        OptionError: an unknown pattern, inner compiler or mode.
        CaptureError: Dynamo captured no graph.
        TuningError: a site cannot be measured honestly here.
    """
    found = sites_of(model, positional("tune", args), kwargs or {}, patterns, inner, mode)
    entries = []
    for number, one in enumerate(found.values(), start=1):
        if progress is not None:
            progress(f"{one.shape.pattern}, {one.shape} ({number} of {len(found)})")
        entry = measure_site(one, inner=inner, mode=mode, bench=bench or Bench())
        if entry is not None:
            entries.append(entry)
            if keep:
                results.save([entry])
    return entries


def sites_of(
    model: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    patterns: Sequence[Pattern | str] | None,
    inner: str,
    mode: str | None,
) -> dict[Shape, Found]:
    """A site of each shape. The pattern's reference is asked for, which every match can have; nothing compiles it."""
    active = parse({"patterns": None if patterns is None else list(patterns), "inner": inner, "mode": mode}).patterns
    active = tuple(p for p in active if not isinstance(p, Region) and kernels_for(p))
    wish = {"kernels": {p.name: REFERENCE for p in active}, "on_miss": "silent"}
    found: dict[Shape, Found] = {}

    def look(gm: torch.fx.GraphModule, fused: Fused) -> Callable[..., Any]:
        for one in fused.rewritten:
            facts = facts_of(one.match, ambient_grad=False, inner=results.compiler(inner, mode))
            shape = shape_of(one.match.pattern, facts)
            if shape is not None:
                found.setdefault(shape, Found(shape, facts, one.match, one.editor))
        return gm.forward

    with torch.no_grad():
        capture(model, args, kwargs, parse({"patterns": list(active), **wish}), look)
    return found


def tune_pattern(
    pattern: Pattern | str,
    sizes: Mapping[str, int],
    *,
    rows: Sequence[int] = (1, 8, 64, 512),
    dtypes: Sequence[torch.dtype] = (torch.bfloat16,),
    device: torch.device | str = "cpu",
    variant: Mapping[str, str] | None = None,
    operands: Sequence[str] = (),
    **how: Any,
) -> list[Entry]:
    """Measure a pattern where no model is at hand: its reference, as a model of the given sizes.

    Args:
        sizes: the pattern's dimensions by name, such as ``{"hidden": 4096, "intermediate": 14336, "out": 4096}``.
        rows: leading sizes of the input.
        variant: labels of the pattern's choices; the first of each, where not given.
        operands: the optional operands that are there.
        how: ``inner``, ``mode``, ``bench``, ``keep`` and ``progress``, as for :func:`tune`.

    Raises:
        OptionError: an unknown pattern, choice, label, operand or dimension, or a dimension without a size.
    """
    chosen = library.lookup(pattern, "tune") if isinstance(pattern, str) else pattern
    way = way_of(chosen, dict(variant or {}), frozenset(operands))
    entries: list[Entry] = []
    for dtype in dtypes:
        for count in rows:
            model, inputs = _model(Example(way, dtype, sizing_of(way, sizes, count)), torch.device(device))
            entries += tune(model, inputs, patterns=[chosen], **how)
    return entries


def way_of(pattern: Pattern, variant: dict[str, str], operands: frozenset[str]) -> Way:
    """The pattern's form with these labels and optional operands.

    Raises:
        OptionError: it has no such choice, label, operand or form.
    """
    for choice, label in variant.items():
        if choice not in pattern.choices:
            raise OptionError("tune: " + unknown(f"choice of {pattern.name}", choice, pattern.choices))
        if label not in pattern.choices[choice]:
            raise OptionError("tune: " + unknown(choice, label, pattern.choices[choice]))
    for name in operands:
        if name not in pattern.captures:
            raise OptionError("tune: " + unknown(f"operand of {pattern.name}", name, pattern.captures))
    found = next((w for w in ways(pattern) if w.given == operands and variant.items() <= w.variant.items()), None)
    if found is None:
        what = ", ".join([*(f"{k}={v}" for k, v in variant.items()), *sorted(operands)])
        raise OptionError(f"tune: {pattern.name} has no form with {what}.")
    return found


def sizing_of(way: Way, sizes: Mapping[str, int], rows: int) -> Sizing:
    """A form's sizes, from those of its dimensions by name.

    Raises:
        OptionError: a dimension has no size.
    """
    captures: Mapping[str, Any] = way.pattern.captures
    dims = dict.fromkeys(d for name in way.tensors for size in captures[name].dims for d in dims_in(size))
    lacking = sorted(d.name for d in dims if d.name not in sizes)
    if lacking:
        given = ", ".join(f"{name}={size}" for name, size in sizes.items()) or "none"
        raise OptionError(f"tune: {way.pattern.name} has no size for {', '.join(lacking)}; given {given}.")
    return Sizing({d: sizes[d.name] for d in dims}, (rows,), {}, size_for(way).scalars)


def _model(example: Example, device: torch.device) -> tuple[nn.Module, list[torch.Tensor]]:
    """The reference as a model on a device, and its inputs; zeros, for only their form is looked at."""
    tensors = dict(_zeros(example, device))
    module = example.module(tensors)
    return module, [tensors[str(n.target)] for n in module.graph.find_nodes(op="placeholder")]


def _zeros(example: Example, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    for name in example.way.tensors:
        capture = example.pattern.captures[name]
        for element in example.way.elements(name):
            made = torch.zeros(example.sizing.shape(name, capture), dtype=example.dtype_of(name), device=device)
            yield element, nn.Parameter(made, requires_grad=False) if is_param(capture) else made
