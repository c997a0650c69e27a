"""The registry: which kernels implement a pattern, and what each takes and requires.

A kernel is a function of a pattern's captures, scalars and choices, by name. It is called with proxies while a graph
is rewritten, so it may hold any PyTorch code, custom ops included. A kernel that does not take an operand which is
present at a site cannot serve that site.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from fxfuse import library
from fxfuse.authoring.region import Region
from fxfuse.errors import PatternError, first_line, unknown
from fxfuse.kernels.facts import SiteFacts
from fxfuse.kernels.lazy import Lazy
from fxfuse.kernels.requirements import Requirements, declared

if TYPE_CHECKING:
    from fxfuse.authoring import Pattern
    from fxfuse.params import Transform

__all__ = ["CONSTANTS", "REFERENCE", "Kernel", "SiteFacts", "check_signature", "kernel", "kernels_for", "reference"]

log = logging.getLogger("fxfuse")

CONSTANTS = "constants"
"""The operand of a region's kernel that has the float literals of the region; a kernel need not take it."""


@dataclass(frozen=True)
class Kernel:
    """One implementation. ``derive`` names operands that are computed from the model's parameters."""

    pattern: str
    name: str
    function: Callable[..., Any]
    requires: Requirements = field(default_factory=Requirements)
    derive: tuple[tuple[str, Transform], ...] = ()
    backward: str | None = None
    default: bool = False
    takes: tuple[str, ...] | None = None
    op: Callable[[], Any] | None = None
    owner: Pattern | None = field(default=None, compare=False)

    def implements(self, pattern: Pattern) -> bool:
        """Whether this kernel is for that very pattern, and not for another of the same name."""
        return self.owner is pattern if self.owner is not None else library.is_first_of_its_name(pattern)

    @functools.cached_property
    def placements(self) -> frozenset[str]:
        """Where its derived weights can live: what every one of them allows; "separate" where it derives none."""
        each = [transform.placements for _, transform in self.derive]
        return frozenset.intersection(*each) if each else frozenset({"separate"})

    @functools.cached_property
    def parameters(self) -> tuple[str, ...]:
        """The operands that the function takes, by name."""
        return self.takes if self.takes is not None else _parameters_of(self.function)

    @functools.cached_property
    def unloadable(self) -> str | None:
        """Why an implementation given by its path, or the op that it calls, cannot be had; or None. Imports, builds."""
        if self.op is not None:
            try:
                self.op()
            except Exception as error:
                return f"cannot have its op: {first_line(error)}"
        if not isinstance(self.function, Lazy):
            return None
        try:
            found = _parameters_of(self.function.load())
        except PatternError as error:
            return str(error).rstrip(".")
        if set(found) != set(self.parameters):
            both = f"({', '.join(found)}), and was declared to take ({', '.join(self.parameters)})"
            return f"{self.function.path!r} takes {both}"
        return None

    def register_op(self) -> None:
        """Have the op at hand that the kernel's function calls, for a graph out of a cache."""
        if self.op is not None:
            self.op()
        elif isinstance(self.function, Lazy):
            self.function.load()

    def unmet(self, facts: SiteFacts, *, guard: bool = False) -> str | None:
        """Why this kernel cannot serve a site, or None."""
        taken = set(self.parameters) | {source for _, t in self.derive for source in t.sources}
        ignored = sorted(facts.present - taken - {CONSTANTS})
        made = {name for name, _ in self.derive}
        needed = [p for p in self.parameters if p not in made] if isinstance(self.owner, Region) else []
        lacking = [p for p in needed if p not in facts.present]
        if lacking:
            return f"takes {lacking[0]}, which the site does not have; it has {', '.join(sorted(facts.present))}"
        if ignored:
            return f"does not take {ignored[0]}, which the site has"
        missing = [s for _, t in self.derive for s in t.sources if s not in facts.present]
        if missing:
            return f"derives a weight from {missing[0]}, which the site does not have"
        partial = [s for _, t in self.derive for s in t.sources if s in facts.partial]
        if partial:
            return f"derives a weight from {partial[0]}, which some of the site's siblings lack"
        if facts.needs_grad and self.backward is None:
            return "has no backward, and the site needs one"
        return self.requires.unmet(facts, guard=guard, taken=facts.present.intersection(self.parameters))


def _parameters_of(function: Callable[..., Any]) -> tuple[str, ...]:
    function = getattr(function, "_init_fn", function)  # what torch.library.custom_op wraps
    return tuple(inspect.signature(function).parameters)


_REGISTRY: dict[str, list[Kernel]] = {}
_LOCK = threading.Lock()
_OWN = (
    "fxfuse.kernels.gated_mlp",
    "fxfuse.kernels.linears",
    "fxfuse.kernels.losses",
    "fxfuse.kernels.norms",
    "fxfuse.kernels.projections",
    "fxfuse.kernels.siblings",
)


def kernel(
    pattern: Pattern | str,
    *,
    name: str,
    device: str | Sequence[str] | None = None,
    capability: tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
    variants: Mapping[str, set[str] | frozenset[str]] | None = None,
    rows: tuple[int, int] | None = None,
    alignment: int | Mapping[str, int] | None = None,
    shared_memory: int | None = None,
    triton: tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] | None = None,
    when: Callable[[SiteFacts], str | None] | None = None,
    derive: Mapping[str, Transform] | None = None,
    backward: str | None = None,
    default: bool = False,
    op: Callable[[], Any] | str | None = None,
    implementation: str | None = None,
    takes: Sequence[str] | None = None,
    force: bool = False,
) -> Callable[..., Any]:
    """Register a function as an implementation of a pattern.

    Either as a decorator, or for a function elsewhere that is imported only when the kernel was chosen::

        fxfuse.kernel(gated_mlp, name="fast", device="cuda", implementation="my_pack.triton.fast:gated_mlp")

    Args:
        pattern: a Pattern or its name.
        name: unique among the pattern's kernels; what a user asks for it by.
        device: device type or types, e.g. ``"cuda"``.
        capability: the least compute capability, or an interval of them.
        dtypes: of the site's first input.
        variants: ``one_of`` name -> the labels that are implemented.
        rows: least and greatest product of the input's leading sizes.
        alignment: bytes at a multiple of which every row of the operands must be known to begin; or a dict of operands.
        shared_memory: bytes that a block needs; the device's limit must allow them.
        triton: the least version of Triton, such as ``(3, 3)``, or an interval of versions.
        when: a further predicate; answers None, or why not.
        derive: operand name -> transform of captures, e.g. ``{"gate_up": stack("gate", "up")}``.
        backward: ``"autograd"`` where autograd differentiates the function itself; None: inference only.
        default: whether it may be chosen without being named; needs a measurement or to be conservative.
        op: registers the custom op that the function calls, where importing its module does not, and builds what the op
            needs; or the path of what does. Called when the kernel is chosen, which is refused if it raises. A compiled
            graph that a cache on disk held needs the op, too, and the function does not run for it.
        implementation: the function, as ``"package.module:attribute"``.
        takes: its operands by name; without them those of the pattern's reference, less what is derived from.
        force: replace a kernel of that name, which is logged.

    Raises:
        PatternError: a second kernel of that name for the pattern, or a parameter that the pattern does not have.
    """
    requires = declared(
        name, device=device, capability=capability, dtypes=dtypes, variants=variants, rows=rows, when=when,
        alignment=alignment, shared_memory=shared_memory, triton=triton,
    )  # fmt: skip
    if derive and not isinstance(derive, Mapping):
        raise PatternError(f"kernel {name!r}: derive is a dict of operand name to transform; given {derive!r}.")
    if backward not in (None, "autograd"):
        raise PatternError(f"kernel {name!r}: backward is None or 'autograd'; given {backward!r}.")
    if takes is not None and implementation is None:
        raise PatternError(f"kernel {name!r}: takes goes with implementation; a function has its own signature.")
    registers = Lazy(op) if isinstance(op, str) else op

    def register(function: Callable[..., Any], takes: tuple[str, ...] | None = None) -> Callable[..., Any]:
        owner = None if isinstance(pattern, str) else pattern
        named = pattern if isinstance(pattern, str) else pattern.name
        derived = tuple((derive or {}).items())
        made = Kernel(named, name, function, requires, derived, backward, default, takes, registers, owner)
        _add(made, force)
        return function

    if implementation is None:
        return register
    return register(Lazy(implementation), _declared_takes(pattern, name, takes, derive or {}))


def _declared_takes(
    pattern: Pattern | str, name: str, takes: Sequence[str] | None, derive: Mapping[str, Transform]
) -> tuple[str, ...]:
    """The operands of a function that is not there to be asked."""
    if takes is not None:
        if isinstance(takes, str) or not all(isinstance(t, str) for t in takes):
            raise PatternError(f"kernel {name!r}: takes is a list of operand names; given {takes!r}.")
        return tuple(takes)
    if isinstance(pattern, str | Region):
        what = "a pattern's name" if isinstance(pattern, str) else "a region"
        raise PatternError(f"kernel {name!r}: an implementation for {what} needs takes, its operands by name.")
    sources = {source for transform in derive.values() for source in transform.sources}
    return (*(c for c in pattern.captures if c not in sources), *derive, *pattern.choices)


def _add(made: Kernel, force: bool) -> None:
    if made.name == REFERENCE:
        raise PatternError(f"kernel {made.name!r}: every pattern has one of this name, its reference; take another.")
    if made.owner is not None:
        check_signature(made, made.owner)
    with _LOCK:
        known = _REGISTRY.setdefault(made.pattern, [])
        same = next((k for k in known if k.name == made.name and k.owner is made.owner), None)
        if same is not None:
            where = same.function.path if isinstance(same.function, Lazy) else _module_of(same.function)
            if not force:
                raise PatternError(f"pattern {made.pattern!r} already has a kernel {made.name!r}, from {where}.")
            log.warning("fxfuse: kernel %r of %r, from %s, is replaced", made.name, made.pattern, where)
            known.remove(same)
        known.append(made)


def _module_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__module__", "an object")


def check_signature(made: Kernel, pattern: Pattern) -> None:
    """Raise where a kernel takes something that its pattern does not have; a region's operands a site tells."""
    if isinstance(pattern, Region):
        return
    valid = {*pattern.captures, *pattern.choices, *(name for name, _ in made.derive)}
    for parameter in made.parameters:
        if parameter not in valid:
            raise PatternError(f"kernel {made.name!r}: " + unknown(f"operand of {pattern.name}", parameter, valid))
    for source in (s for _, t in made.derive for s in t.sources):
        if source not in pattern.captures:
            raise PatternError(f"kernel {made.name!r} derives from " + unknown("capture", source, pattern.captures))
    for operand in (name for name, _ in made.requires.alignment if name):
        if operand not in pattern.captures:
            raise PatternError(f"kernel {made.name!r} aligns " + unknown("capture", operand, pattern.captures))
    for choice, labels in made.requires.variants:
        if choice not in pattern.choices:
            raise PatternError(f"kernel {made.name!r}: " + unknown("choice", choice, pattern.choices))
        for label in labels:
            if label not in pattern.choices[choice]:
                raise PatternError(f"kernel {made.name!r}: " + unknown(choice, label, pattern.choices[choice]))


def kernels_for(pattern: Pattern | str) -> dict[str, Kernel]:
    """The kernels of a pattern by name, fxfuse's own included; of a bare name, those of every pattern so called."""
    for module in _OWN:
        importlib.import_module(module)
    with _LOCK:
        known = list(_REGISTRY.get(pattern if isinstance(pattern, str) else pattern.name, ()))
    return {k.name: k for k in known if isinstance(pattern, str) or k.implements(pattern)}


REFERENCE = "reference"
"""The kernel that every pattern has: its own reference function, put back in place of what matched."""


def reference(pattern: Pattern) -> Kernel:
    """The pattern's reference function as a kernel, for a pattern that was named and has no other that can run."""

    def function(**operands: Any) -> Any:
        variant = {name: operands.pop(name) for name in pattern.choices}
        return pattern.reference(operands, variant)

    takes = (*pattern.captures, *pattern.choices)
    return Kernel(pattern.name, REFERENCE, function, backward="autograd", takes=takes)
