"""Concrete sizes and scalars under which a way of a pattern runs: distinct small ones that satisfy its relations."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxfuse.authoring.captures import Capture
from fxfuse.authoring.sizes import Dim, dims_in, evaluate
from fxfuse.checking.failures import CheckError, NotHere
from fxfuse.checking.ways import Way
from fxfuse.errors import first_line

DISTINCT = (16, 24, 40, 12, 20, 28, 36, 44, 52, 60)
ODD = (7, 9, 11, 5, 13, 15, 3, 17, 19, 21)
SQUARE = (16,) * 10
LEAD = (2, 3)

_POOL = (32, 48, 80, 24, 40, 16, 12, 20, 28, 8, 4, 2, 1)
_TRIES = 3_000
_CHANGED = 3
_STRINGS = ("tanh", "none", "mean", "sum", "constant", "floor")


@dataclass(frozen=True)
class Sizing:
    """Sizes by dimension, sizes of leading dimensions, of inputs of any shape, and scalars by name.

    Of an input of any shape ``tails`` has the sizes after the leading ones; None is one element, which fits anything.
    """

    dims: Mapping[Dim, int]
    lead: tuple[int, ...]
    tails: Mapping[str, tuple[int, ...] | None]
    scalars: Mapping[str, Any]

    def shape(self, name: str, capture: Any) -> tuple[int, ...]:
        """The shape of a capture's tensor."""
        if capture.dims == (...,):
            tail = self.tails.get(name, ())
            return (1,) if tail is None else (*self.lead, *tail)
        sizes = [evaluate(d, self.dims) for d in capture.dims if d is not ...]
        if any(not isinstance(size, int) or size < 1 for size in sizes):
            raise ValueError(f"{name} would have sizes {sizes}")
        return (*(self.lead if ... in capture.dims else ()), *sizes)


def size_for(way: Way, *, lead: tuple[int, ...] = LEAD, prefer: Sequence[int] = DISTINCT) -> Sizing:
    """The sizing nearest to the preferred one with which the reference runs.

    Raises:
        NotHere: torch cannot run the reference on this device.
        CheckError: none was found.
    """
    return _size_for(_Key(way), lead, tuple(prefer))


class _Key:
    """A way as a key of a cache: ways are made once for each pattern."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self._is = (way.pattern, tuple(way.variant.items()), way.tensors, way.siblings)

    def __hash__(self) -> int:
        return hash(self._is)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._is == other._is


@functools.lru_cache(maxsize=4096)
def _size_for(key: _Key, lead: tuple[int, ...], prefer: tuple[int, ...]) -> Sizing:
    way = key.way
    last: Exception | None = None
    for sizing in itertools.islice(_candidates(way, lead, prefer), _TRIES):
        try:
            way.run(zeros(way, sizing), sizing.scalars)
        except NotImplementedError as error:
            raise NotHere(f"the reference cannot run here as {way}: {first_line(error)}") from error
        except Exception as error:  # any complaint of torch about these sizes
            last = last or error
        else:
            return sizing
    what = first_line(last) if last else "nothing, for no sizes fit its relations"
    raise CheckError(
        f"no sizes were found with which the reference runs as {way}; with distinct sizes it raises {what}. "
        f"Relate sizes that depend on one another, as in Param(2 * N, D)."
    )


def zeros(way: Way, sizing: Sizing) -> dict[str, torch.Tensor]:
    """A tensor of zeros for each name in the way's graph."""
    sets = [d for name in way.tensors if (d := getattr(way.pattern.captures[name], "dtypes", None))]
    floating = (torch.float32, torch.bfloat16, torch.float16)
    common = next((d for d in floating if all(d in allowed for allowed in sets)), torch.float32)
    made = {}
    for name in way.tensors:
        capture: Any = way.pattern.captures[name]
        dtype = common if not capture.dtypes or common in capture.dtypes else capture.dtypes[0]
        for element in way.elements(name):
            made[element] = torch.zeros(sizing.shape(name, capture), dtype=dtype)
    return made


Choice = Callable[[Mapping[Dim, int]], Any]


def _candidates(way: Way, lead: tuple[int, ...], prefer: tuple[int, ...]) -> Iterator[Sizing]:
    """Sizings by how many of the unknowns differ from their preferred values."""
    captures: Mapping[str, Capture] = way.pattern.captures
    used: list[Any] = [captures[name] for name in way.tensors]
    dims = list(dict.fromkeys(d for c in used for size in c.dims for d in dims_in(size)))
    bare = [name for name in way.tensors if getattr(captures[name], "dims", None) == (...,)]
    keys: list[Any] = [*dims, *bare, *way.scalars]
    pool = (*_POOL, math.prod(lead))  # a size may count the rows of an input
    pools: list[list[Any]] = [list(dict.fromkeys((prefer[i % len(prefer)], *pool))) for i in range(len(dims))]
    pools += [[(prefer[0],), (), None] for _ in bare]
    pools += [_scalars(captures[name], i, dims) for i, name in enumerate(way.scalars)]
    for changed in range(_CHANGED + 1):
        for places in itertools.combinations(range(len(keys)), changed):
            for picks in itertools.product(*(pools[p][1:] for p in places)):
                picked = dict(zip(places, picks, strict=True))
                values = {key: picked.get(i, pools[i][0]) for i, key in enumerate(keys)}
                sizes = {d: values[d] for d in dims}
                scalars = {n: v(sizes) if callable(v := values[n]) else v for n in way.scalars}
                yield Sizing(sizes, lead, {n: values[n] for n in bare}, scalars)


def _scalars(capture: Any, place: int, dims: Sequence[Dim]) -> list[Any]:
    """Values to try for a scalar; those of one dimension's size are functions of the sizes."""
    sizes: list[Choice] = [functools.partial(_size, dim) for dim in dims]
    if capture.type is float:
        return [0.0625 * (2 * place + 1), 0.5, 2.0]
    if capture.type is int:
        return [2, *sizes, 1, 3, 4, -1, 0]
    if capture.type is bool:
        return [True, False]
    if capture.type is str:
        return list(_STRINGS)
    return [*(functools.partial(_tuple, dim) for dim in dims), (-1,), (-2, -1), (1, 1), (0, 1), (1, 0)]


def _size(dim: Dim, sizes: Mapping[Dim, int]) -> int:
    return sizes[dim]


def _tuple(dim: Dim, sizes: Mapping[Dim, int]) -> tuple[int]:
    return (sizes[dim],)
