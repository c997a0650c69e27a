"""`fxfuse bench kernels`: every kernel that can run here against float64, on the device at hand.

At sizes that fill a kernel's tiles and at sizes that do not, from no row to some hundred: each result is within the
numeric contract on six kinds of random inputs (:mod:`fxfuse.numerics.trial`), and two runs give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fxfuse import library
from fxfuse.authoring import Pattern, Region
from fxfuse.benchmarks.errors import BenchError
from fxfuse.benchmarks.ready import refused
from fxfuse.benchmarks.sets import subject
from fxfuse.benchmarks.shapes import DTYPES
from fxfuse.checking.running import tensors_in
from fxfuse.errors import first_line
from fxfuse.kernels import Kernel, kernels_for
from fxfuse.numerics.isolate import Isolated
from fxfuse.numerics.state import random_state
from fxfuse.numerics.trial import random_value, trial
from fxfuse.tuning.run import sites_of
from fxfuse.tuning.site import Found
from fxfuse.view import LeafKind

SIZES = (
    {"hidden": 256, "intermediate": 384, "out": 256},
    {"hidden": 1024, "intermediate": 640, "out": 520},
    {"hidden": 97, "intermediate": 131, "out": 101},
)
ROWS = (0, 1, 7, 16, 17, 64, 65, 333)

Progress = Callable[[str], None]


def patterns() -> list[str]:
    """Those of the standard library that have kernels."""
    known = library.all_patterns()
    return [full for full, p in known.items() if full.startswith("fxfuse::") and _has_kernels(p)]


def _has_kernels(pattern: Pattern) -> bool:
    return not isinstance(pattern, Region) and bool(kernels_for(pattern))


def check(
    name: str, dtype: str, device: torch.device, progress: Progress, rows: Sequence[int] = ROWS, inner: str = "inductor"
) -> int:
    """Check the kernels of a pattern in one dtype; how many results were compared.

    Raises:
        BenchError: some are not as they must be; the message has each, with its shape.
    """
    problems: list[str] = []
    compared = 0
    for sizes in SIZES:
        for count in rows:
            problem, number = _at(name, sizes, count, dtype, device, progress, inner)
            problems += problem
            compared += number
    if problems:
        raise BenchError(f"{len(problems)} of {compared} kernel results are wrong: {'; '.join(problems)}")
    return compared


@torch.no_grad()
def _at(
    name: str, sizes: dict[str, int], rows: int, dtype: str, device: torch.device, progress: Progress, inner: str
) -> tuple[list[str], int]:
    pattern = library.lookup(name, "--pattern")
    made = subject(pattern, sizes, rows, getattr(torch, DTYPES[dtype]), device)
    where = f"{dtype}, {rows} rows, {' '.join(f'{n}={size}' for n, size in sizes.items())}"
    model = made.module(made.module_class(), made.weights())
    found = next(iter(sites_of(model, made.inputs, {}, [pattern], inner, None).values()), None)
    if found is None:
        return [f"{name} does not match its own reference ({where})"], 1
    unable = refused(pattern, found.facts)
    able = [kernel for kernel in kernels_for(pattern).values() if kernel.name not in unable]
    problems = []
    for kernel in able:
        progress(f"{kernel.name}, {where}")
        placement = "share" if kernel.derive else "separate"
        problem = _on_nothing(found, kernel, placement) if rows == 0 else _wrong(found, kernel, placement)
        if problem is not None:
            problems.append(f"{problem} ({where})")
    return problems, len(able)


def _wrong(found: Found, kernel: Kernel, placement: str) -> str | None:
    """What is wrong with a kernel at a site: its numbers, or that two runs on the same values differ."""
    problem = trial(found.editor, found.match, kernel, placement, ()).problem
    if problem is not None:
        return problem
    site, values = _isolated(found, kernel, placement)
    first, second = (tensors_in(site.fused(values)) for _ in range(2))
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return None if same else f"kernel {kernel.name}: two runs differ"


def _on_nothing(found: Found, kernel: Kernel, placement: str) -> str | None:
    """What is wrong with a kernel's results where there is no row, and so no number to compare."""
    try:
        site, values = _isolated(found, kernel, placement)
        fused = tensors_in(site.fused(values))
    except Exception as error:  # whatever the kernel or its launch raises
        return f"kernel {kernel.name}: {first_line(error)}"
    forms = [[(t.shape, t.dtype) for t in results] for results in (fused, tensors_in(site.original(values)))]
    return None if forms[0] == forms[1] else f"kernel {kernel.name} gives {forms[0]}; the site gives {forms[1]}"


def _isolated(found: Found, kernel: Kernel, placement: str) -> tuple[Isolated, list[Any]]:
    """A site with a kernel, and random values for what it reads."""
    site = Isolated(found.editor, found.match, kernel, placement)
    with random_state():
        torch.manual_seed(0)
        return site, [random_value(node, _kind(found, node)) for node in site.inputs]


def _kind(found: Found, node: torch.fx.Node) -> str:
    leaf = found.match.view.value(node).leaf
    return "weight" if leaf is not None and leaf.kind in (LeafKind.PARAMETER, LeafKind.BUFFER) else "plain"
