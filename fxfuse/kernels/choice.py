"""Which kernel a site gets, and why not the others: by name, by measurement, or the conservative one.

Where the kernels of a pattern were measured at a shape like the site's, on this machine or the nearest of its
architecture, the fastest is taken, and a site that all of them slow down is left to the inner compiler. Where nothing
was measured, it is the narrowest of those that were declared a safe default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxfuse import library
from fxfuse.compat import size_hint
from fxfuse.errors import PatternError
from fxfuse.kernels.facts import SiteFacts
from fxfuse.kernels.registry import REFERENCE, Kernel, check_signature, kernels_for, reference
from fxfuse.kernels.sources import source_of
from fxfuse.results import LEFT_ALONE, Arm, Entry, Shape
from fxfuse.results.nearest import differs

if TYPE_CHECKING:
    from fxfuse.authoring import Pattern

MARGIN = 1.02
"""How many times as fast, in the median, another arm must be for the conservative choice to be given up."""

UNMEASURED = "not measured on this device"


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


# --- by measurement ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What an entry says about a site: the arms that can run there, fastest first, with their kernels."""

    entry: Entry
    remark: str
    arms: tuple[tuple[str, Kernel | None], ...]

    def words(self, arm: str) -> str:
        """``1.31x as fast as left alone (NVIDIA H200 (sm_90), bfloat16, 8 rows, hidden=4096)``."""
        where = f"{self.entry}; {self.remark}" if self.remark else str(self.entry)
        return f"{self.entry.ratio(arm):.2f}x as fast as left alone ({where})"


def shape_of(pattern: Pattern, facts: SiteFacts) -> Shape | None:
    """What a measurement at the site would be one of; None where its sizes have no values."""
    rows = size_hint(facts.rows)
    siblings = {f"{name}[{i}]": size for name, sizes in facts.widths.items() for i, size in enumerate(sizes)}
    sizes = {name: size_hint(size) for name, size in {**facts.sizes, **siblings}.items()}
    if rows is None or facts.dtype is None or any(size is None for size in sizes.values()):
        return None
    return Shape(
        library.qualified(pattern),
        tuple(sorted(facts.variant.items())),
        tuple(sorted(facts.present)),
        str(facts.dtype).removeprefix("torch."),
        rows,
        tuple(sorted((name, size) for name, size in sizes.items() if size is not None)),
        facts.inner,
    )


def measured(pattern: Pattern, facts: SiteFacts) -> Measured | None:
    """What was measured for a site like this, as far as it holds for the kernels as they are; None: nothing."""
    if facts.results is None or facts.machine is None or facts.needs_grad or not facts.results.entries:
        return None
    shape = shape_of(pattern, facts)
    entry = facts.results.find(shape, facts.machine) if shape is not None else None
    if shape is None or entry is None:
        return None
    hinted = dataclasses.replace(facts, rows=shape.rows)
    able: dict[str, Kernel | None] = {LEFT_ALONE: None}
    for made, problem in candidates(pattern, hinted):
        arm = entry.arms.get(made.name)
        if problem is None and arm is not None and arm.source == source_of(made):
            able[made.name] = made
    if len(able) == 1:
        return None
    fastest = sorted(able, key=lambda name: entry.arms[name].ms)
    return Measured(entry, differs(entry, shape, facts.machine), tuple((name, able[name]) for name in fastest))


# --- the choice -------------------------------------------------------------------------------------------------------


class Loss(str):
    """Why a site has no kernel: those that can run there were measured to be no faster than the inner compiler."""


def granted(pattern: Pattern, facts: SiteFacts) -> tuple[Kernel | None, str]:
    """The narrowest default kernel whose weights are a second copy and nothing else, where nothing was measured.

    For a user who grants the memory: it does nothing else for such a kernel to be there.
    """
    if measured(pattern, facts) is not None:
        return None, ""
    for made, problem in candidates(pattern, facts):
        if problem is None and made.default and made.placements == {"copy"} and made.unloadable is None:
            return made, "the narrowest kernel that can run with the second copy that extra_memory grants"
    return None, ""


def choose(
    pattern: Pattern,
    facts: SiteFacts,
    *,
    derived: bool,
    either: bool = False,
    placement: str | None = None,
    without: Collection[str] = (),
) -> tuple[Kernel | None, str]:
    """The kernel for a site where nobody named one, and a sentence on why (or why none).

    Args:
        derived: take a kernel that derives weights (the user asked for a placement that only such a kernel has).
        placement: where its derived weights must be able to live; None: anywhere.
        either: where the kernels were measured, take the fastest whether it derives weights or not.
        without: kernels whose weights could not be placed here.
    """
    refused: list[str] = []
    safe: Kernel | None = None
    for made, problem in candidates(pattern, facts):
        if problem is None and not made.default:
            problem = f"runs only when named: {UNMEASURED}"
        elif problem is None and bool(made.derive) != derived:
            problem = "derives weights" if made.derive else "derives no weights"
        elif made.name in without:
            problem = problem or "cannot have its weights here"
        elif problem is None and made.derive and placement is not None and placement not in made.placements:
            problem = f"cannot have its weights placed by {placement!r}"
        elif problem is None:
            problem = made.unloadable
        if problem is None:
            safe = made
            break
        refused.append(f"{made.name} {problem}")
    found = measured(pattern, facts)
    if found is not None:
        decided = _by_measurement(pattern, facts, found, safe, (True, False) if either else (derived,))
        if decided is not None and (decided[0] is None or decided[0].name not in without):
            return decided
    if safe is None:
        return None, "; ".join(refused) or f"no kernel is registered for {pattern.name}"
    note = f"; {UNMEASURED}" if facts.results is not None and not facts.needs_grad else ""
    return safe, f"the narrowest kernel that can run{note}"


def _by_measurement(
    pattern: Pattern, facts: SiteFacts, found: Measured, safe: Kernel | None, derive: tuple[bool, ...]
) -> tuple[Kernel | None, str] | None:
    """The kernel that is faster than the conservative choice by more than noise, or None where left alone is; with why.

    Args:
        safe: the conservative choice.
        derive: whether a kernel that derives weights may be taken, and one that derives none.
    """
    times = found.entry.arms
    arms = [(arm, made) for arm, made in found.arms if made is None or bool(made.derive) in derive]
    known = any(made is not None and made is safe for _, made in arms)
    bar = times[safe.name if safe is not None and known else LEFT_ALONE]
    kernels = [arm for arm, made in arms if made is not None]
    for arm, made in arms:
        wins = _beats(times[arm], bar)
        if made is None:
            if kernels and (safe is None or wins):
                return None, Loss(f"measured to be no faster: {kernels[0]} is {found.words(kernels[0])}")
        elif made is safe:
            return safe, f"measured as fast as any: {found.words(arm)}"
        elif wins and _runs(made, pattern, facts):
            return made, f"measured fastest: {found.words(arm)}"
        elif wins:
            kernels.remove(arm)
    return None


def _beats(arm: Arm, other: Arm) -> bool:
    """Whether it is faster by more than noise: in the median, and in four of five of its turns."""
    return arm.ms * MARGIN <= other.ms and arm.p80 <= other.ms


def _runs(made: Kernel, pattern: Pattern, facts: SiteFacts) -> bool:
    """Whether it can be taken for all calls that the graph will serve, which may add a guard on the row count."""
    try:
        return _problem(made, pattern, facts, guard=True) is None and made.unloadable is None
    except RuntimeError:  # nobody installs guards here
        return False


def fastest(pattern: Pattern, facts: SiteFacts, *, may_derive: bool = True) -> tuple[Kernel | None, str]:
    """The kernel for a site of a pattern that was named, wherever one can run: as measured, else the narrowest.

    Args:
        may_derive: whether one that derives weights will do.
    """
    found = measured(pattern, facts)
    for arm, made in found.arms if found is not None else ():
        if made is None or found is None or (made.derive and not may_derive):
            continue
        if _runs(made, pattern, facts):
            return made, f"the pattern was named, and this is the fastest kernel that can run: {found.words(arm)}"
    for made, problem in candidates(pattern, facts):
        if problem is None and made.unloadable is None and (may_derive or not made.derive):
            return made, "the pattern was named, and this is the narrowest kernel that can run"
    return None, ""


def why_none(pattern: Pattern, facts: SiteFacts, why: str) -> tuple[str, str]:
    """The reason code of a site that :func:`choose` has no kernel for, and its sentence; ``why`` is what it said.

    COST: a kernel can run here, and was measured to lose, or nobody has measured that it wins. REQUIRES_GRAD: one
    could, did it have a backward. NO_KERNEL: none can.
    """
    if isinstance(why, Loss):
        return "COST", why
    able = [made.name for made, problem in candidates(pattern, facts) if problem is None and not made.default]
    if able:
        name = f"kernels={{{pattern.name!r}: {able[0]!r}}}"
        return "COST", f"{UNMEASURED}: {', '.join(able)} can run here when named, {name}"
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
        problem = _problem(known[name], pattern, facts, guard=True) or known[name].unloadable
        if problem is None:
            return known[name], "asked for by name"
        refused.append(f"kernel {name!r} {problem}")
    return None, "; ".join(refused)
