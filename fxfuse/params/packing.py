"""A linear's weight in the layout that its GEMM reads: `panels`, fxfuse's own, and `pack`, oneDNN's blocked one.

A tensor in oneDNN's layout is opaque: it has no strides, Inductor takes it for a constant only, and nothing may look
into it. What reaches a graph is a *handle*, an ordinary int64 tensor (1,) that holds the packed one alive and names it.
The op `packed_linear` asks the handle. A handle whose packed weight is gone raises; it never reads other memory.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxfuse.compat import can_pack_linear, pack_linear, packed_bytes, run_packed_linear
from fxfuse.params.transforms import Transform

BLOCK = (64, 16)
"""Rows and columns are padded up to multiples of these, at most (AVX-512; AVX2 pads less)."""

PANEL = 32
"""Rows of a weight in one panel."""

_PACKED: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Pack(Transform):
    """See `pack`."""

    @property
    def inlinable(self) -> bool:
        return False

    def _check(self, values: Sequence[Tensor]) -> None:
        (weight,) = values
        problem = can_pack_linear()
        if problem is None and weight.device.type not in ("cpu", "meta"):
            problem = f"found one on {weight.device}"
        if problem is None and (weight.ndim != 2 or weight.dtype is not torch.float32 or not weight.numel()):
            problem = f"found {weight.dtype} {tuple(weight.shape)}"
        if problem is not None:
            raise ValueError(
                f"{self.describe()} needs a float32 weight (out, in) on a CPU with oneDNN; {problem} "
                f"for {self._operand_names()}"
            )

    def _apply(self, values: Sequence[Any]) -> Any:
        register()
        return torch.ops.fxfuse.pack_linear(values[0])

    def _bytes_of(self, operands: Sequence[Tensor]) -> int:
        rows, columns = (size + -size % block for size, block in zip(operands[0].shape, BLOCK, strict=True))
        return rows * columns * operands[0].dtype.itemsize

    def bytes_held(self, result: Tensor) -> int:
        return packed_bytes(packed_in(result))


@dataclass(frozen=True)
class Panels(Transform):
    """See `panels`."""

    @property
    def inlinable(self) -> bool:
        return False

    def _check(self, values: Sequence[Tensor]) -> None:
        (weight,) = values
        if weight.ndim != 2 or weight.dtype is not torch.float32:
            raise ValueError(
                f"{self.describe()} needs a float32 weight (out, in); "
                f"found {weight.dtype} {tuple(weight.shape)} for {self._operand_names()}"
            )

    def _apply(self, values: Sequence[Any]) -> Any:
        (weight,) = values
        rows, columns = weight.shape
        whole = F.pad(weight, (0, 0, 0, -rows % PANEL)) if rows % PANEL else weight
        return whole.reshape(-(-rows // PANEL), PANEL, columns).transpose(1, 2).contiguous()

    def _invert(self, result: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        rows, columns = shapes[0]
        return (result.transpose(1, 2).reshape(len(result) * PANEL, columns)[:rows],)


def panels(operand: str | Transform) -> Panels:
    """A float32 weight (out, in) as panels of 32 rows, each transposed: (out / 32 rounded up, in, 32), zeros below.

    What `fxfuse.kernels.panels` makes of a weight on each call, kept. The inverse cuts the zeros off. It is a second
    copy always: its sources cannot live in it, and a kernel that keeps no panels needs no such tensor.
    """
    return Panels((operand,))


def pack(operand: str | Transform) -> Pack:
    """A float32 weight (out, in) of a linear in oneDNN's blocked layout, behind a handle (1,), for `packed_linear`.

    The copy takes out x in elements, each rounded up to whole blocks (64 x 16 at most). It is a second copy always: its
    sources cannot live in it, and packing anew on each call would cost more than it gains.
    """
    return Pack((operand,))


def packed_in(handle: Tensor) -> Tensor:
    """The packed weight that a handle names. Raises RuntimeError where it is gone."""
    packed = _PACKED.get(int(handle))
    if packed is None:
        raise RuntimeError(f"the packed weight number {int(handle)} is gone; was its handle copied or kept apart?")
    return packed


def packed_linear(x: Any, handle: Any, bias: Any, rows: int) -> Any:
    """`linear` of a float32 input (..., in) with a packed weight of so many rows: (..., rows)."""
    register()
    return torch.ops.fxfuse.packed_linear(x, handle, bias, rows)


def _pack(weight: Tensor) -> Tensor:
    packed = pack_linear(weight.detach().contiguous())
    number = next(_NUMBERS)
    handle = torch.tensor([number], device="cpu")  # whatever the default device is
    handle._fxfuse_packed = packed  # type: ignore[attr-defined]  # lives as long as the handle does
    _PACKED[number] = packed
    return handle


def _linear(x: Tensor, handle: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    packed = packed_in(handle)
    if x.dtype != torch.float32 or tuple(packed.shape) != (rows, x.shape[-1]):
        raise RuntimeError(
            f"packed_linear was given {x.dtype} {tuple(x.shape)} and {rows} rows; "
            f"the packed weight is {packed.dtype} {tuple(packed.shape)}"
        )
    return run_packed_linear(x.contiguous(), packed, bias)


@functools.cache
def register() -> torch.library.Library:
    """The ops, made once; a compiled graph out of a cache needs them, too."""
    library = torch.library.Library("fxfuse", "FRAGMENT")
    tags = (torch.Tag.pt2_compliant_tag,)
    library.define("pack_linear(Tensor weight) -> Tensor", tags=tags)
    library.define("packed_linear(Tensor x, Tensor handle, Tensor? bias, SymInt rows) -> Tensor", tags=tags)
    library.impl("pack_linear", _pack, "CPU")
    library.impl("packed_linear", _linear, "CPU")
    torch.library.register_fake(
        "fxfuse::pack_linear", lambda weight: weight.new_empty((1,), dtype=torch.int64), lib=library
    )
    torch.library.register_fake(
        "fxfuse::packed_linear", lambda x, handle, bias, rows: x.new_empty((*x.shape[:-1], rows)), lib=library
    )
    return library
