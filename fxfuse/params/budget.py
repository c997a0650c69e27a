"""What second copies may take: `extra_memory`, a hard limit, parameter by parameter.

A copy's *ratio* is its bytes to those of the parameters that it was made from. The ratios of all copies that a
parameter is in may add up to `extra_memory`, whichever graphs asked for them, so that no set of parameters ever has
copies of more than that fraction of its own bytes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from fxfuse.params.transforms import Transform

SLACK = 1e-9  # ratios are sums of quotients


class Held(Protocol):
    """A copy that is there."""

    ratio: float
    bytes: int
    refs: list[weakref.ref[Tensor]]
    key: tuple[Transform, tuple[int, ...]]


class Budget:
    """The copies that one graph plans, beside those that are there.

    `fraction` is `extra_memory`; `held` gives the copies of this process.
    """

    def __init__(self, fraction: float, held: Iterable[Held]) -> None:
        self.fraction = fraction
        self._held = held
        self._planned: dict[tuple[Transform, tuple[int, ...]], float] = {}

    def refusal(self, wanted: Sequence[tuple[Transform, Sequence[Tensor]]]) -> str | None:
        """Why these copies may not be made, with the bytes that they want; None where they may."""
        try:
            new = {key_of(transform, sources): ratio_of(transform, sources) for transform, sources in wanted}
        except ValueError as unfit:
            return str(unfit)
        total = sum(bytes_of(transform, sources) for transform, sources in wanted)
        own = own_bytes([source for _, sources in wanted for source in sources])
        for transform, sources in wanted:
            for source in sources:
                used = self._used(id(source), new)
                if used > self.fraction + SLACK:
                    grant = f"extra_memory={self.fraction:g} grants {int(self.fraction * own)}"
                    others = used - sum(ratio for (_, ids), ratio in new.items() if id(source) in ids)
                    beside = " beside other copies of the same parameters" if others > SLACK else ""
                    return f"a copy, {transform.describe()}, wants {total} bytes{beside}, and {grant}"
        return None

    def plan(self, wanted: Sequence[tuple[Transform, Sequence[Tensor]]]) -> None:
        """Count these copies from now on."""
        for transform, sources in wanted:
            self._planned[key_of(transform, sources)] = ratio_of(transform, sources)

    def _used(self, source: int, new: dict[tuple[Transform, tuple[int, ...]], float]) -> float:
        ratios = {copy.key: copy.ratio for copy in self._held if any(id(ref()) == source for ref in copy.refs)}
        ratios.update((key, ratio) for key, ratio in self._planned.items() if source in key[1])
        ratios.update((key, ratio) for key, ratio in new.items() if source in key[1])
        return sum(ratios.values())


def key_of(transform: Transform, sources: Sequence[Tensor]) -> tuple[Transform, tuple[int, ...]]:
    """Under which a copy of these sources is kept."""
    return transform, tuple(map(id, sources))


def bytes_of(transform: Transform, sources: Sequence[Tensor]) -> int:
    """The bytes that a copy takes, at most."""
    return transform.bytes([tuple(s.shape) for s in sources], [s.dtype for s in sources])


def ratio_of(transform: Transform, sources: Sequence[Tensor]) -> float:
    """A copy's bytes to those of its sources."""
    return bytes_of(transform, sources) / max(1, own_bytes(sources))


def own_bytes(sources: Sequence[Tensor]) -> int:
    """The bytes of memory that these parameters take: what is tied or expanded counts once, as it lies there."""
    wanted: dict[int, int] = {}
    there: dict[int, int] = {}
    for source in {id(s): s for s in sources}.values():
        try:
            storage = source.untyped_storage()
            place, size = storage._cdata, storage.nbytes()
        except (RuntimeError, NotImplementedError):  # a kind of tensor that no copy is kept of
            place, size = id(source), source.nbytes
        wanted[place] = wanted.get(place, 0) + source.nbytes
        there[place] = size
    return sum(min(size, there[place]) for place, size in wanted.items())
