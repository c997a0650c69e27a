"""The registry: which kernels implement a pattern, what each requires, and which one a site gets.

A kernel is a function of a pattern's captures, scalars and choices, by name. It is called with proxies while a graph
is rewritten, so it may hold any PyTorch code, custom ops included. A kernel that does not take an operand which is
present at a site cannot serve that site.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from fxfuse import library
from fxfuse.authoring.region import Region
from fxfuse.errors import PatternError, unknown

if TYPE_CHECKING:
    from fxfuse.authoring import Pattern
    from fxfuse.params import Transform


CONSTANTS = "constants"
"""The operand of a region's kernel that has the float literals of the region; a kernel need not take it."""


@dataclass(frozen=True)
class SiteFacts:
    """What a kernel's requirements are checked against.

    ``rows`` is the product of the leading sizes of the input, ``sizes`` has the pattern's dimensions by name.
    """

    device: str
    capability: tuple[int, int] | None
    dtype: torch.dtype | None
    rows: int | torch.SymInt
    variant: Mapping[str, str]
    present: frozenset[str]
    symbolic_scalars: frozenset[str]
    needs_grad: bool
    sizes: Mapping[str, int | torch.SymInt] = field(default_factory=dict)


@dataclass(frozen=True)
class Requirements:
    """What must hold for a kernel to run; None means anything."""

    device: tuple[str, ...] | None = None
    capability: tuple[tuple[int, int], tuple[int, int]] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    variants: tuple[tuple[str, frozenset[str]], ...] = ()
    rows: tuple[int, int] | None = None
    when: Callable[[SiteFacts], str | None] | None = None

    def unmet(self, facts: SiteFacts, *, guard: bool) -> str | None:
        """The first requirement that a site does not meet, as a sentence; None where all are met.

        Args:
            guard: whether a symbolic row count may be compared, which adds a guard to the compiled graph.
        """
        if self.device is not None and facts.device not in self.device:
            return f"needs a {' or '.join(self.device)} device; the site is on {facts.device}"
        if self.capability is not None:
            low, high = self.capability
            if facts.capability is None or not low <= facts.capability <= high:
                return f"needs compute capability {_dotted(low)} to {_dotted(high)}; found {_dotted(facts.capability)}"
        if self.dtypes is not None and facts.dtype not in self.dtypes:
            names = ", ".join(str(d).removeprefix("torch.") for d in self.dtypes)
            return f"needs dtype {names}; the site has {str(facts.dtype).removeprefix('torch.')}"
        for name, labels in self.variants:
            if name in facts.variant and facts.variant[name] not in labels:
                return f"needs {name} in {{{', '.join(sorted(labels))}}}; the site has {facts.variant[name]}"
        if self.rows is not None:
            low_rows, high_rows = self.rows
            if not isinstance(facts.rows, int) and not guard:
                return f"needs {low_rows} to {high_rows} rows; the site's row count is dynamic ({facts.rows})"
            if not (low_rows <= facts.rows and facts.rows <= high_rows):
                return f"needs {low_rows} to {high_rows} rows; the site has {facts.rows}"
        return self.when(facts) if self.when is not None else None

    @property
    def width(self) -> tuple[int, ...]:
        """Smaller is narrower; where several kernels can run, the narrowest is taken."""

        def size(items: Sequence[Any] | frozenset[str] | None) -> int:
            return len(items) if items is not None else 1_000

        capability = 1_000
        if self.capability is not None:
            (a, b), (c, d) = self.capability
            capability = (c - a) * 10 + d - b
        rows = self.rows[1] - self.rows[0] if self.rows is not None else 1 << 40
        variants = sum(size(labels) for _, labels in self.variants) or 1_000
        return size(self.device), capability, rows, size(self.dtypes), variants, 0 if self.when is not None else 1


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
    def parameters(self) -> tuple[str, ...]:
        """The operands that the function takes, by name."""
        if self.takes is not None:
            return self.takes
        function = getattr(self.function, "_init_fn", self.function)  # what torch.library.custom_op wraps
        return tuple(inspect.signature(function).parameters)

    def unmet(self, facts: SiteFacts, *, guard: bool = False) -> str | None:
        """Why this kernel cannot serve a site, or None."""
        taken = set(self.parameters) | {source for _, t in self.derive for source in t.sources}
        ignored = sorted(facts.present - taken - {CONSTANTS})
        lacking = [p for p in self.parameters if p not in facts.present] if isinstance(self.owner, Region) else ()
        if lacking:
            return f"takes {lacking[0]}, which the site does not have; it has {', '.join(sorted(facts.present))}"
        if ignored:
            return f"does not take {ignored[0]}, which the site has"
        missing = [s for _, t in self.derive for s in t.sources if s not in facts.present]
        if missing:
            return f"derives a weight from {missing[0]}, which the site does not have"
        if facts.needs_grad and self.backward is None:
            return "has no backward, and the site needs one"
        return self.requires.unmet(facts, guard=guard)


_REGISTRY: dict[str, list[Kernel]] = {}
_LOCK = threading.Lock()
_OWN = ("fxfuse.kernels.gated_mlp",)


def kernel(
    pattern: Pattern | str,
    *,
    name: str,
    device: str | Sequence[str] | None = None,
    capability: tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
    variants: Mapping[str, set[str] | frozenset[str]] | None = None,
    rows: tuple[int, int] | None = None,
    when: Callable[[SiteFacts], str | None] | None = None,
    derive: Mapping[str, Transform] | None = None,
    backward: str | None = None,
    default: bool = False,
    op: Callable[[], Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as an implementation of a pattern.

    Args:
        pattern: a Pattern or its name.
        name: unique among the pattern's kernels; what a user asks for it by.
        device: device type or types, e.g. ``"cuda"``.
        capability: the least compute capability, or an interval of them.
        dtypes: of the site's first input.
        variants: ``one_of`` name -> the labels that are implemented.
        rows: least and greatest product of the input's leading sizes.
        when: a further predicate; answers None, or why not.
        derive: operand name -> transform of captures, e.g. ``{"gate_up": stack("gate", "up")}``.
        backward: ``"autograd"`` where autograd differentiates the function itself; None: inference only.
        default: whether it may be chosen without being named; needs a measurement or to be conservative.
        op: registers the custom op that the function calls, where importing its module does not. A compiled graph
            that a cache on disk held needs the op, and the function does not run for it.

    Raises:
        PatternError: a second kernel of that name for the pattern, or a parameter that the pattern does not have.
    """
    pattern_name = pattern if isinstance(pattern, str) else pattern.name
    _check_declaration(name, device, capability, dtypes, variants, rows, when, derive)
    interval = None
    if capability is not None:
        interval = capability if isinstance(capability[0], tuple) else (capability, (99, 9))
    requires = Requirements(
        device=(device,) if isinstance(device, str) else tuple(device) if device is not None else None,
        capability=interval,
        dtypes=tuple(dtypes) if dtypes is not None else None,
        variants=tuple(sorted((k, frozenset(v)) for k, v in (variants or {}).items())),
        rows=rows,
        when=when,
    )
    if backward not in (None, "autograd"):
        raise PatternError(f"kernel {name!r}: backward is None or 'autograd'; given {backward!r}.")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        owner = None if isinstance(pattern, str) else pattern
        derived = tuple((derive or {}).items())
        made = Kernel(pattern_name, name, function, requires, derived, backward, default, op=op, owner=owner)
        if name == REFERENCE:
            raise PatternError(f"kernel {name!r}: every pattern has one of this name, its reference; take another.")
        if owner is not None:
            check_signature(made, owner)
        with _LOCK:
            known = _REGISTRY.setdefault(pattern_name, [])
            same = next((k for k in known if k.name == name and k.owner is owner), None)
            if same is not None:
                where = getattr(same.function, "__module__", "an object")
                raise PatternError(f"pattern {pattern_name!r} already has a kernel {name!r}, from {where}.")
            known.append(made)
        return function

    return register


def _check_declaration(
    name: Any, device: Any, capability: Any, dtypes: Any, variants: Any, rows: Any, when: Any, derive: Any
) -> None:
    """Raise PatternError for a requirement of the wrong form, where it is declared."""

    def pair(value: Any, kind: Any) -> bool:
        return isinstance(value, tuple) and len(value) == 2 and all(kind(v) for v in value)

    def number(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    def strings(value: Any) -> bool:
        return isinstance(value, Collection) and all(isinstance(v, str) for v in value)

    names = isinstance(device, str) or device is None or strings(device)
    types = dtypes is None or (isinstance(dtypes, Collection) and all(isinstance(d, torch.dtype) for d in dtypes))
    version = capability is None or pair(capability, number) or pair(capability, lambda v: pair(v, number))
    labels = not variants or (isinstance(variants, Mapping) and all(strings(v) for v in variants.values()))
    for holds, key, wanted, given in (
        (isinstance(name, str) and name != "", "name", "a string", name),
        (names, "device", "a device type or several, such as 'cuda'", device),
        (version, "capability", "(major, minor), or an interval of two of these", capability),
        (types, "dtypes", "a tuple of torch.dtype", dtypes),
        (labels, "variants", "a dict of one_of name to a set of labels", variants),
        (rows is None or (pair(rows, number) and 0 <= rows[0] <= rows[1]), "rows", "(least, greatest)", rows),
        (when is None or callable(when), "when", "a function of the site's facts", when),
        (not derive or isinstance(derive, Mapping), "derive", "a dict of operand name to transform", derive),
    ):
        if not holds:
            raise PatternError(f"kernel {name!r}: {key} is {wanted}; given {given!r}.")


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


def candidates(pattern: Pattern, facts: SiteFacts, *, guard: bool = False) -> list[tuple[Kernel, str | None]]:
    """Every kernel of the pattern, narrowest first, with why it cannot serve the site (None: it can)."""
    known = sorted(kernels_for(pattern).values(), key=lambda k: (k.requires.width, k.name))
    return [(made, _problem(made, pattern, facts, guard=guard)) for made in known]


def _problem(made: Kernel, pattern: Pattern, facts: SiteFacts, *, guard: bool) -> str | None:
    try:
        check_signature(made, pattern)
    except PatternError as error:  # declared by the pattern's name, before the pattern was there to check against
        return f"is not usable: {error}"
    return made.unmet(facts, guard=guard)


def choose(pattern: Pattern, facts: SiteFacts, *, derived: bool) -> tuple[Kernel | None, str]:
    """The kernel for a site where nobody named one, and a sentence on why (or why none).

    Args:
        derived: take a kernel that derives weights (the user asked for a placement that only such a kernel has).
    """
    refused: list[str] = []
    for made, problem in candidates(pattern, facts):
        if problem is None and made.default and bool(made.derive) == derived:
            return made, "the narrowest kernel that can run"
        if problem is None and not made.default:
            problem = "runs only when named: not measured on this device"
        elif problem is None:
            problem = "derives weights" if made.derive else "derives no weights"
        refused.append(f"{made.name} {problem}")
    return None, "; ".join(refused) or f"no kernel is registered for {pattern.name}"


def why_none(pattern: Pattern, facts: SiteFacts, why: str) -> tuple[str, str]:
    """The reason code of a site that :func:`choose` has no kernel for, and its sentence; ``why`` is what it said.

    COST: a kernel can run here, and nobody has measured that it wins. REQUIRES_GRAD: one could, did it have a backward.
    NO_KERNEL: none can.
    """
    able = [made.name for made, problem in candidates(pattern, facts) if problem is None and not made.default]
    if able:
        name = f"kernels={{{pattern.name!r}: {able[0]!r}}}"
        return "COST", f"not measured on this device: {', '.join(able)} can run here when named, {name}"
    if facts.needs_grad:
        without = candidates(pattern, dataclasses.replace(facts, needs_grad=False))
        able = [made.name for made, problem in without if problem is None]
        if able:
            return (
                "REQUIRES_GRAD",
                f"what goes in requires grad, and no kernel for it has a backward: {', '.join(able)}",
            )
    return "NO_KERNEL", why


def named(pattern: Pattern, names: Sequence[str], facts: SiteFacts) -> tuple[Kernel | None, str]:
    """The first of the kernels asked for by name that can run here, or why none can. Never one that was not named."""
    known = {**kernels_for(pattern), REFERENCE: reference(pattern)}
    refused = []
    for name in names:
        if name not in known:
            refused.append(f"kernel {name!r} is for another pattern of this name")
            continue
        problem = _problem(known[name], pattern, facts, guard=True)
        if problem is None:
            return known[name], "asked for by name"
        refused.append(f"kernel {name!r} {problem}")
    return None, "; ".join(refused)


def _dotted(capability: tuple[int, int] | None) -> str:
    return "none" if capability is None else f"{capability[0]}.{capability[1]}"
