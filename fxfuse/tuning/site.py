"""One site measured: every kernel that can run it, and the site left alone, each compiled by itself, timed in turns.

By itself means without what stands around it: what the inner compiler would fuse across the site's border counts for
no arm.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxfuse import compat, machine
from fxfuse.errors import first_line
from fxfuse.kernels import Kernel, SiteFacts, candidates
from fxfuse.kernels.sources import source_of
from fxfuse.match import Match
from fxfuse.numerics.isolate import Isolated
from fxfuse.numerics.state import random_state
from fxfuse.numerics.trial import random_value
from fxfuse.results import LEFT_ALONE, Arm, Entry, Shape, Versions
from fxfuse.rewriting import Editor
from fxfuse.tuning.timing import Bench, Call, TuningError
from fxfuse.view import LeafKind

_WITHOUT_GRAPHS = {"reduce-overhead": None, "max-autotune": "max-autotune-no-cudagraphs"}
"""The modes that record CUDA graphs, as which every arm is timed already, and what they are without."""

AGREES = 0.05
"""The largest RMS error, relative to the site's own result, with which an arm computes the same thing."""


@dataclass(frozen=True)
class Found:
    """A site to measure."""

    shape: Shape
    facts: SiteFacts
    match: Match
    editor: Editor


@torch.no_grad()
def measure_site(found: Found, *, inner: str, mode: str | None, bench: Bench) -> Entry | None:
    """The entry of a site, or None where no kernel can run it.

    Raises:
        TuningError: the site cannot be run by itself, or its weights do not fit into memory often enough.
    """
    skipped: dict[str, str] = {}
    isolated: dict[str, tuple[Kernel, Isolated]] = {}
    for made, problem in candidates(found.match.pattern, found.facts):
        problem = problem or made.unloadable
        if problem is None:
            try:
                placement = "share" if made.derive else "separate"
                isolated[made.name] = made, Isolated(found.editor, found.match, made, placement)
            except Exception as error:  # a kernel that cannot be put in place is not measured, and the others are
                problem = first_line(error)
        if problem is not None:
            skipped[made.name] = problem
    if not isolated:
        return None
    site = next(iter(isolated.values()))[1]
    values, rotated = _values(found.match, site.inputs)
    device = next((v.device for v in values if isinstance(v, torch.Tensor)), torch.device("cpu"))
    weights = sum(values[i].nbytes for i in rotated)
    number = bench.sets(weights, device)
    sets = [values, *(_another(values, rotated) for _ in range(number - 1))]
    calls: dict[str, Call] = {LEFT_ALONE: _call(_compiled(site.modules()[0], inner, mode), sets)}
    want = _tensors(calls[LEFT_ALONE](0))
    for name, (made, one) in isolated.items():
        derived = [one.derive(each) for each in sets]
        call = _call(_compiled(one.modules()[1], inner, mode), [[*a, *b] for a, b in zip(sets, derived, strict=True)])
        problem = _disagrees(call, want)
        if problem is None:
            calls[name] = call
        else:
            skipped[made.name] = problem
    if len(calls) == 1:
        return None
    times = bench.arms(calls, number, device)
    arms = {n: Arm(a.ms, a.p20, a.p80, source_of(isolated[n][0]) if n in isolated else "") for n, a in times.items()}
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return Entry(found.shape, machine.machine_of(device), Versions.here(), arms, skipped, now)


def _values(match: Match, inputs: Sequence[fx.Node]) -> tuple[list[Any], list[int]]:
    """A value for each input of a site, random and of its form, and which of them are weights."""
    values: list[Any] = []
    rotated: list[int] = []
    with random_state():
        torch.manual_seed(0)
        for node in inputs:
            leaf = match.view.value(node).leaf
            is_weight = leaf is not None and leaf.kind in (LeafKind.PARAMETER, LeafKind.BUFFER)
            try:
                values.append(random_value(node, "weight" if is_weight else "plain"))
            except Exception as error:
                raise TuningError(f"no value can be made for {node.name}: {first_line(error)}") from error
            if is_weight and isinstance(values[-1], torch.Tensor):
                rotated.append(len(values) - 1)
    return values, rotated


def _another(values: Sequence[Any], rotated: Sequence[int]) -> list[Any]:
    """The same arguments with weights at other addresses."""
    return [v.clone() if i in rotated else v for i, v in enumerate(values)]


def _compiled(module: fx.GraphModule, inner: str, mode: str | None) -> Callable[..., Any]:
    if inner == "eager":
        return module.forward
    mode = _WITHOUT_GRAPHS.get(mode, mode) if mode is not None else None
    keywords: Mapping[str, Any] = {"mode": mode} if mode is not None else {}
    return compat.isolated_compile(module, inner, dynamic=False, fullgraph=True, **keywords)


def _call(function: Callable[..., Any], sets: Sequence[Sequence[Any]]) -> Call:
    return lambda number: function(*sets[number])


def _tensors(result: Any) -> list[torch.Tensor]:
    return [r for r in (result if isinstance(result, tuple | list) else (result,)) if isinstance(r, torch.Tensor)]


def _disagrees(call: Call, want: Sequence[torch.Tensor]) -> str | None:
    """Why an arm cannot be compared: it fails, or computes something else."""
    try:
        got = _tensors(call(0))
    except Exception as error:  # whatever its compiler or its launch raises
        return first_line(error)
    for ours, theirs in zip(got, want, strict=True):
        off = (ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-30)
        if not off <= AGREES:
            return f"its result is off by {off:.1e} from that of the site left alone"
    return None
