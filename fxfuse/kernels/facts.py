"""`SiteFacts`: what is known of a site when its kernel is chosen, and what requirements are checked against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from fxfuse import machine
from fxfuse.authoring.captures import is_many, is_scalar
from fxfuse.compat import statically_known_true
from fxfuse.view import LeafKind, Value

if TYPE_CHECKING:
    from fxfuse.machine import Machine
    from fxfuse.match import Match
    from fxfuse.results import Results


@dataclass(frozen=True)
class SiteFacts:
    """What a kernel's requirements are checked against.

    Attributes:
        rows: the product of the leading sizes of the input.
        sizes: the pattern's dimensions by name; widths: the first sizes of each of the siblings, by ``many`` capture.
        present: the operands that the site has; partial: those ``many`` ones that some of its siblings lack.
        operands: the example values (fake tensors) of those that are tensors, by name; of a ``many`` capture several.
        addresses: where the live ones among the weights are stored, in the same order.
        capability, shared_memory: the device's compute capability, and bytes of shared memory for one block.
        triton: the version of Triton that is installed.
        inner: what compiles the graph afterwards, and so what a kernel was measured against.
        results, machine: what was measured, as of this compile, and on what the site runs; None: nothing is looked up.
    """

    device: str
    capability: tuple[int, int] | None
    dtype: torch.dtype | None
    rows: int | torch.SymInt
    variant: Mapping[str, str]
    present: frozenset[str]
    symbolic_scalars: frozenset[str]
    needs_grad: bool
    partial: frozenset[str] = frozenset()
    sizes: Mapping[str, int | torch.SymInt] = field(default_factory=dict)
    widths: Mapping[str, tuple[int | torch.SymInt, ...]] = field(default_factory=dict)
    operands: Mapping[str, tuple[torch.Tensor, ...]] = field(default_factory=dict)
    addresses: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    shared_memory: int | None = None
    triton: tuple[int, ...] | None = None
    inner: str = "inductor"
    results: Results | None = None
    machine: Machine | None = None

    def misaligned(self, name: str, alignment: int) -> str | None:
        """Why not every row of an operand is known to begin at a multiple of so many bytes, or None.

        A row is what lies along the last dimension, and has to be contiguous. Runtime inputs are told by their strides
        and offset; the allocator's own alignment is taken for granted.
        """
        problems = (_misaligned(name, tensor, alignment) for tensor in self.operands.get(name, ()))
        odd = (f"{name} is stored at address {at:#x}" for at in self.addresses.get(name, ()) if at % alignment)
        return next((p for p in problems if p is not None), None) or next(odd, None)


def _misaligned(name: str, tensor: torch.Tensor, alignment: int) -> str | None:
    itemsize = tensor.dtype.itemsize
    strides = [s for size, s in zip(tensor.shape, tensor.stride(), strict=True) if not _known(size == 1)]
    if strides and not _known(strides[-1] == 1):
        return f"{name} is not contiguous along its last dimension (stride {strides[-1]})"
    for stride in strides[:-1]:
        if not _known((stride * itemsize) % alignment == 0):
            return f"the rows of {name} are {stride} elements of {itemsize} bytes apart"
    if not _known((tensor.storage_offset() * itemsize) % alignment == 0):
        return f"{name} begins {tensor.storage_offset()} elements of {itemsize} bytes into its storage"
    return None


def _known(condition: Any) -> bool:
    return condition if isinstance(condition, bool) else statically_known_true(condition)


def facts_of(
    match: Match,
    *,
    ambient_grad: bool,
    examples: Sequence[Any] = (),
    inner: str = "inductor",
    results: Results | None = None,
) -> SiteFacts:
    """The facts of a match.

    Args:
        ambient_grad: whether grad mode is on around the graph.
        examples: the live arguments of the graph.
    """
    grad = match.view.effects.grad_enabled(match.root.node, ambient_grad)
    inputs = [v for v in match.captured_values() if v.shape is not None]
    first = next((v for v in inputs if v.leaf is None or v.leaf.kind is LeafKind.INPUT), inputs[0])
    rows: Any = 1
    for size in (first.shape or (1,))[:-1]:
        rows = rows * size
    device = first.device if first.device is not None else torch.device("cpu")
    captures = match.pattern.captures
    values = {name: match.captured_values((name,)) for name in captures}
    tensors = {name: tuple(v.meta for v in vs if isinstance(v.meta, torch.Tensor)) for name, vs in values.items()}
    addresses = {name: tuple(at for v in vs if (at := _address(v, examples))) for name, vs in values.items()}
    return SiteFacts(
        device=device.type,
        capability=machine.capability(device),
        dtype=first.dtype,
        rows=rows,
        variant=match.variant,
        present=frozenset(name for name, v in match.captures.items() if v is not None),
        partial=frozenset(name for name, v in match.captures.items() if isinstance(v, tuple) and None in v),
        symbolic_scalars=frozenset(
            name for name, capture in captures.items() if is_scalar(capture) and isinstance(match.captures[name], Value)
        ),
        needs_grad=grad and any(getattr(v.meta, "requires_grad", False) for v in inputs),
        sizes={dim.name: size for dim, size in match.sizes.items()},
        widths={
            name: tuple(t.shape[0] for t in ts if t.dim()) for name, ts in tensors.items() if is_many(captures[name])
        },
        operands={name: found for name, found in tensors.items() if found},
        addresses=addresses,
        shared_memory=machine.shared_memory(device),
        triton=machine.triton_version(),
        inner=inner,
        results=results,
        machine=machine.machine_of(device) if results is not None else None,
    )


def _address(value: Value, examples: Sequence[Any]) -> int | None:
    """Where a weight is stored; None for what is no live weight."""
    leaf = value.leaf
    if leaf is None or leaf.kind not in (LeafKind.PARAMETER, LeafKind.BUFFER) or leaf.position is None:
        return None
    example = examples[leaf.position] if leaf.position < len(examples) else None
    if not isinstance(example, torch.Tensor) or isinstance(example, torch._subclasses.FakeTensor):
        return None
    try:
        return example.data_ptr()
    except RuntimeError:  # a subclass without storage
        return None
