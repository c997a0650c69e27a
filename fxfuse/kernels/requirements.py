"""`Requirements`: what must hold for a kernel to run, how narrow that is, and how an author may write it down."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxfuse.errors import PatternError
from fxfuse.kernels.facts import SiteFacts

Version = tuple[int, ...]
Interval = tuple[Version, Version]

_NEWEST = (99, 9)
_ANY = 1_000
"""How wide a requirement is that is not there."""


@dataclass(frozen=True)
class Requirements:
    """What must hold for a kernel to run; None means anything.

    Attributes:
        capability, triton: least and greatest version, both included.
        rows: least and greatest product of the input's leading sizes.
        when: a further predicate; answers None, or why not.
        alignment: bytes at a multiple of which every row of an operand begins, by operand; under ``""`` for every one
            that the kernel takes.
        shared_memory: bytes that one block needs.
    """

    device: tuple[str, ...] | None = None
    capability: Interval | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    variants: tuple[tuple[str, frozenset[str]], ...] = ()
    rows: tuple[int, int] | None = None
    when: Callable[[SiteFacts], str | None] | None = None
    alignment: tuple[tuple[str, int], ...] = ()
    shared_memory: int | None = None
    triton: Interval | None = None

    def unmet(self, facts: SiteFacts, *, guard: bool, taken: Collection[str] | None = None) -> str | None:
        """The first requirement that a site does not meet, as a sentence; None where all are met.

        Args:
            guard: whether a symbolic row count may be compared, which adds a guard to the compiled graph.
            taken: the operands that the kernel reads as they are; None: all.
        """
        return (
            self.unmet_by_machine(facts)
            or self._unmet_by_form(facts, facts.operands if taken is None else taken)
            or self._unmet_by_rows(facts, guard)
            or (self.when(facts) if self.when is not None else None)
        )

    def unmet_by_machine(self, facts: SiteFacts) -> str | None:
        """The same of what no site, but the machine decides."""
        if self.device is not None and facts.device not in self.device:
            return f"needs a {' or '.join(self.device)} device; the site is on {facts.device}"
        if self.capability is not None and not _within(facts.capability, self.capability):
            low, high = map(_dotted, self.capability)
            return f"needs compute capability {low} to {high}; found {_dotted(facts.capability)}"
        if self.shared_memory is not None and (facts.shared_memory or 0) < self.shared_memory:
            found = "none" if facts.shared_memory is None else facts.shared_memory
            return f"needs {self.shared_memory} bytes of shared memory for a block; the device has {found}"
        if self.triton is not None and not _within(facts.triton, self.triton):
            low, high = map(_dotted, self.triton)
            return f"needs Triton {low} to {high}; found {_dotted(facts.triton)}"
        return None

    def _unmet_by_form(self, facts: SiteFacts, taken: Collection[str]) -> str | None:
        if self.dtypes is not None and facts.dtype not in self.dtypes:
            names = ", ".join(str(d).removeprefix("torch.") for d in self.dtypes)
            return f"needs dtype {names}; the site has {str(facts.dtype).removeprefix('torch.')}"
        for name, labels in self.variants:
            if name in facts.variant and facts.variant[name] not in labels:
                return f"needs {name} in {{{', '.join(sorted(labels))}}}; the site has {facts.variant[name]}"
        for name, alignment in self.alignment:
            for operand in (name,) if name else sorted(taken):
                problem = facts.misaligned(operand, alignment)
                if problem is not None:
                    return f"needs rows that begin at multiples of {alignment} bytes; {problem}"
        return None

    def _unmet_by_rows(self, facts: SiteFacts, guard: bool) -> str | None:
        if self.rows is None:
            return None
        low, high = self.rows
        if not isinstance(facts.rows, int) and not guard:
            return f"needs {low} to {high} rows; the site's row count is dynamic ({facts.rows})"
        if not (low <= facts.rows and facts.rows <= high):
            return f"needs {low} to {high} rows; the site has {facts.rows}"
        return None

    @property
    def width(self) -> tuple[int, ...]:
        """Smaller is narrower; where several kernels can run, the narrowest is taken."""

        def size(items: Sequence[Any] | frozenset[str] | None) -> int:
            return len(items) if items is not None else _ANY

        rows = self.rows[1] - self.rows[0] if self.rows is not None else 1 << 40
        variants = sum(size(labels) for _, labels in self.variants) or _ANY
        further = (self.alignment, self.shared_memory, self.triton, self.when)
        absent = sum(1 for requirement in further if requirement is None or requirement == ())
        return size(self.device), _span(self.capability), rows, size(self.dtypes), variants, absent


def declared(
    name: str,
    *,
    device: str | Sequence[str] | None,
    capability: Any,
    dtypes: Sequence[torch.dtype] | None,
    variants: Mapping[str, Collection[str]] | None,
    rows: tuple[int, int] | None,
    when: Callable[[SiteFacts], str | None] | None,
    alignment: int | Mapping[str, int] | None,
    shared_memory: int | None,
    triton: Any,
) -> Requirements:
    """The requirements as an author wrote them down for the kernel ``name``.

    Raises:
        PatternError: one of the wrong form.
    """
    types = dtypes is None or (isinstance(dtypes, Collection) and all(isinstance(d, torch.dtype) for d in dtypes))
    labels = not variants or (isinstance(variants, Mapping) and all(_strings(v) for v in variants.values()))
    devices = device is None or isinstance(device, str) or _strings(device)
    aligned = alignment is None or _power(alignment) or (isinstance(alignment, Mapping) and _powers(alignment))
    span = "(major, minor), or an interval of two of these"
    for holds, key, wanted, given in (
        (isinstance(name, str) and name != "", "name", "a string", name),
        (devices, "device", "a device type or several, such as 'cuda'", device),
        (capability is None or _versions(capability), "capability", span, capability),
        (types, "dtypes", "a tuple of torch.dtype", dtypes),
        (labels, "variants", "a dict of one_of name to a set of labels", variants),
        (rows is None or (_pair(rows) and rows[0] <= rows[1]), "rows", "(least, greatest)", rows),
        (when is None or callable(when), "when", "a function of the site's facts", when),
        (aligned, "alignment", "a power of two in bytes, or a dict of operand to one", alignment),
        (shared_memory is None or _number(shared_memory), "shared_memory", "a number of bytes", shared_memory),
        (triton is None or _versions(triton), "triton", span, triton),
    ):
        if not holds:
            raise PatternError(f"kernel {name!r}: {key} is {wanted}; given {given!r}.")
    bytes_of = alignment if isinstance(alignment, Mapping) else {"": alignment} if alignment is not None else {}
    return Requirements(
        device=(device,) if isinstance(device, str) else tuple(device) if device is not None else None,
        capability=_interval(capability),
        dtypes=tuple(dtypes) if dtypes is not None else None,
        variants=tuple(sorted((k, frozenset(v)) for k, v in (variants or {}).items())),
        rows=rows,
        when=when,
        alignment=tuple(sorted(bytes_of.items())),
        shared_memory=shared_memory,
        triton=_interval(triton),
    )


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_number, value))


def _versions(value: Any) -> bool:
    return _pair(value) or (isinstance(value, tuple) and len(value) == 2 and all(map(_pair, value)))


def _strings(value: Any) -> bool:
    return isinstance(value, Collection) and all(isinstance(v, str) for v in value)


def _power(value: Any) -> bool:
    return _number(value) and value > 0 and value & (value - 1) == 0


def _powers(value: Mapping[Any, Any]) -> bool:
    return all(isinstance(k, str) and k != "" and _power(v) for k, v in value.items())


def _interval(given: Any) -> Interval | None:
    if given is None:
        return None
    return given if isinstance(given[0], tuple) else (given, _NEWEST)


def _within(found: Version | None, interval: Interval) -> bool:
    low, high = interval
    return found is not None and low <= found[: len(low)] and found[: len(high)] <= high


def _span(interval: Interval | None) -> int:
    if interval is None:
        return _ANY
    (a, b), (c, d) = interval
    return (c - a) * 10 + d - b


def _dotted(version: Version | None) -> str:
    return "none" if version is None else ".".join(map(str, version))
