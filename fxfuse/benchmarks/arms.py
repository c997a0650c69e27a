"""The arms: every way of running the same function that fxfuse is compared with, and fxfuse's own.

A fair comparison is with the best that a user could have instead, not with eager: Inductor's other modes (at one row
`coordinate_descent_tuning` makes of each GEMM a reduction that fuses with what follows), and a model whose author has
stacked the weights by hand.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fxfuse
from fxfuse import compat, library
from fxfuse.authoring import Pattern
from fxfuse.benchmarks.errors import BenchError
from fxfuse.errors import listed, unknown
from fxfuse.kernels import Kernel, kernels_for

EAGER = "eager"
INDUCTOR = "inductor"
BASE = INDUCTOR
"""The arm that ratios are to."""

FXFUSE = "fxfuse"
KERNEL = "kernel:"
"""Before the name of one of fxfuse's kernels: the arm in which that kernel was named."""

OP, MODEL = "op", "model"
"""Which arms there are: for one site, and for whole models (compile and memory included)."""


@dataclass(frozen=True)
class Arm:
    """One way of running a function.

    Attributes:
        what: for people.
        devices: the types of device that it runs on; none given: any.
        module: whose code it runs: the ``"reference"``'s, or one written ``"by hand"`` or over ``"liger"``.
        backend: of torch.compile; None: not compiled.
        kernel: the kernel that fxfuse is told to take.
        derives: whether that kernel derives weights.
    """

    name: str
    what: str
    backend: str | None = "inductor"
    mode: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    module: str = "reference"
    kernel: str = ""
    derives: bool = False

    @property
    def ours(self) -> bool:
        """Whether fxfuse runs in it."""
        return self.backend == FXFUSE


_COMMON = (
    Arm(EAGER, "PyTorch, not compiled", None),
    Arm(BASE, "torch.compile"),
)
_HAND = Arm("hand-stacked", "a module written by hand with one gate_up linear, torch.compile", module="by hand")
_LIGER = Arm("liger", "Liger's functions in the module, not compiled", None, devices=("cuda",), module="liger")
_COORDINATE = {"coordinate_descent_tuning": True}
_GRAPHS = {"triton.cudagraphs": True}
INDUCTORS = frozenset({*_COORDINATE, *_GRAPHS})
"""Options of an arm that only Inductor knows."""

ARMS: dict[str, tuple[Arm, ...]] = {
    OP: (
        *_COMMON,
        Arm("max-autotune", "torch.compile, mode max-autotune-no-cudagraphs", mode="max-autotune-no-cudagraphs"),
        Arm(
            "coordinate-descent",
            "torch.compile with coordinate_descent_tuning; in CUDA graphs, as every arm",
            options=_COORDINATE,
            devices=("cuda",),
        ),
        _HAND,
        _LIGER,
        Arm(FXFUSE, "backend fxfuse, no options", FXFUSE),
    ),
    MODEL: (
        *_COMMON,
        Arm("max-autotune", "torch.compile, mode max-autotune", mode="max-autotune"),
        Arm("reduce-overhead", "torch.compile, mode reduce-overhead", mode="reduce-overhead", devices=("cuda",)),
        Arm(
            "coordinate-descent",
            "torch.compile with coordinate_descent_tuning and CUDA graphs",
            options={**_COORDINATE, **_GRAPHS},
            devices=("cuda",),
        ),
        _HAND,
        _LIGER,
        Arm(FXFUSE, "backend fxfuse, no options", FXFUSE),
        Arm("fxfuse-share", "backend fxfuse, weights share: gate and up as one tensor", FXFUSE,
            options={"weights": "share"}),
        Arm("fxfuse-reduce-overhead", "backend fxfuse, mode reduce-overhead", FXFUSE, mode="reduce-overhead",
            devices=("cuda",)),
    ),
}  # fmt: skip


def kernel_arms(pattern: Pattern) -> list[Arm]:
    """An arm for each kernel of a pattern, by name."""
    return [_kernel_arm(name, made) for name, made in kernels_for(pattern).items()]


def _kernel_arm(name: str, made: Kernel) -> Arm:
    what = f"backend fxfuse with kernel {name} named"
    devices = made.requires.device or ()
    return Arm(KERNEL + name, what, FXFUSE, kernel=name, derives=bool(made.derive), devices=devices)


def chosen(known: Sequence[Arm], names: Iterable[str] | None) -> list[Arm]:
    """The arms of these names, in the order of ``known``; all, where no names are given.

    Raises:
        BenchError: a name that no arm has.
    """
    if names is None:
        return list(known)
    wanted = set(names)
    valid = [arm.name for arm in known]
    for name in sorted(wanted - set(valid)):
        raise BenchError("--arms: " + unknown("arm", name, valid))
    return [arm for arm in known if arm.name in wanted]


def absent(arm: Arm, device: str, inner: str = INDUCTOR) -> str | None:
    """Why an arm cannot run on this kind of device with what is installed, or None."""
    if arm.devices and device not in arm.devices:
        return f"needs a {listed(arm.devices)} device"
    if inner != INDUCTOR and (arm.mode or arm.options.keys() & INDUCTORS):
        return f"is a mode of Inductor's, and {inner} compiles here"
    if arm.module == "liger" and importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    return None


def compiled(
    arm: Arm,
    function: Callable[..., Any],
    pattern: Pattern | None = None,
    *,
    inner: str = INDUCTOR,
    fullgraph: bool = False,
) -> Callable[..., Any]:
    """``function`` as the arm runs it.

    Args:
        pattern: what a named kernel is for, and what is looked for even where fxfuse has it off.
        inner: what compiles in Inductor's place.
    """
    if arm.backend is None:
        return function
    keywords: dict[str, Any] = {"dynamic": False, "fullgraph": fullgraph}
    if arm.ours:
        return compat.isolated_compile(function, _backend(arm, pattern, inner), **keywords)
    if arm.options:
        keywords["options"] = dict(arm.options)
    elif arm.mode is not None:
        keywords["mode"] = arm.mode
    return compat.isolated_compile(function, inner, **keywords)


def _backend(arm: Arm, pattern: Pattern | None, inner: str) -> Any:
    options: dict[str, Any] = {"on_miss": "silent", "on_error": "raise", "inner": inner, **arm.options}
    if pattern is not None and arm.kernel:
        options |= {"patterns": [pattern], "kernels": {pattern.name: arm.kernel}}
        options["weights"] = "share" if arm.derives else "auto"
    elif pattern is not None and pattern not in library.defaults():
        options["add"] = [pattern]
    return fxfuse.Backend(mode=arm.mode, **options)
