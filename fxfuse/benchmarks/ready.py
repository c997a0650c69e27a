"""The arms of one site: which cannot run it and why not, and each of the others compiled and run once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fxfuse
from fxfuse.authoring import Pattern
from fxfuse.benchmarks.arms import Arm, absent, compiled
from fxfuse.benchmarks.by_hand import maker
from fxfuse.benchmarks.sets import Subject
from fxfuse.checking.running import tensors_in
from fxfuse.kernels import SiteFacts, candidates, kernels_for
from fxfuse.tuning.run import sites_of
from fxfuse.tuning.timing import Call


@dataclass
class Ready:
    """An arm that runs: its calls by number of set, what it gave on set 0, and what fxfuse says that it ran."""

    call: Call
    results: tuple[Tensor, ...]
    ran: str = ""


class References:
    """The reference with each set of weights."""

    def __init__(self, made: Subject, number: int) -> None:
        kind = made.module_class()
        self.modules: list[nn.Module] = [made.module(kind, made.weights()) for n in range(number)]

    def weights(self, number: int) -> dict[str, Tensor]:
        return dict(self.modules[number].named_parameters())


def absent_from(arm: Arm, made: Subject, device: torch.device, inner: str, unable: Mapping[str, str]) -> str | None:
    """Why an arm cannot run this, found out before anything is compiled. ``unable``: of kernels, by name."""
    why = absent(arm, device.type, inner)
    if why is None and arm.module != "reference":
        found = maker(arm.module, made.example.pattern.name)
        why = found if isinstance(found, str) else None
    if why is None and arm.kernel:
        why = unable.get(arm.kernel)
    return why


def unmet(made: Subject, inner: str) -> dict[str, str]:
    """Which kernels cannot run the subject, and why not."""
    pattern = made.example.pattern
    model = made.module(made.module_class(), made.weights())
    found = next(iter(sites_of(model, made.inputs, {}, [pattern], inner, None).values()), None)
    if found is None:
        return dict.fromkeys(kernels_for(pattern), "the pattern does not match its own reference here")
    return refused(pattern, found.facts)


def refused(pattern: Pattern, facts: SiteFacts) -> dict[str, str]:
    """Which kernels of a pattern cannot run a site, and why not."""
    problems = [(made, problem or made.unloadable) for made, problem in candidates(pattern, facts)]
    return {made.name: problem for made, problem in problems if problem is not None}


def ready(arm: Arm, made: Subject, reference: References, number: int, inner: str) -> Ready:
    """The arm compiled and run once: on every set, where it moves weights, so that none moves under a CUDA graph."""
    pattern = made.example.pattern
    modules = reference.modules
    if arm.module != "reference":
        build = maker(arm.module, pattern.name)
        assert not isinstance(build, str), "such an arm was left out"
        modules = [build(reference.weights(n)) for n in range(number)]

    def run(module: nn.Module, *inputs: Tensor) -> Any:
        return module(*inputs)

    function = compiled(arm, run, pattern, inner=inner, fullgraph=True)
    inputs = made.inputs

    def call(n: int) -> Any:
        return function(modules[n], *inputs)

    results = tensors_in(call(0))
    ran = _ran() if arm.ours else ""
    for n in range(1, number if arm.ours else 1):
        call(n)
    return Ready(call, tuple(t.clone() for t in results), ran)


def _ran() -> str:
    """What fxfuse's report of the last compile says that it did with the site."""
    report = fxfuse.reports()[-1]
    if not report.sites:
        return "no site"
    site = report.sites[0]
    return f"{site.kernel} ({site.weights})" if site.outcome == "rewritten" else f"left alone: {site.reason}"
