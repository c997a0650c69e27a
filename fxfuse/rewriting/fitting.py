"""What a replacement has in common with what it replaces: dtype, shape, device, strides, whose memory it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from fxfuse.rewriting.errors import RewriteError
from fxfuse.rewriting.examples import tensor_of
from fxfuse.safeguards import safeguard
from fxfuse.view.effects import storages, written_by
from fxfuse.view.values import same_shape, same_size

SAME_TYPE = safeguard("same-type", "readers would get another dtype, shape or device than they were written for")
SAME_STRIDES = safeguard("same-strides", "a view or an in-place write after the site would address other elements")
SAME_MEMORY = safeguard("same-memory", "a write to a result would change an operand or another result")
OPERANDS_KEPT = safeguard("operands-kept", "a kernel would change what others read")


def require_fit(
    results: Sequence[fx.Node],
    originals: Sequence[fx.Node],
    operands: Sequence[fx.Node],
    made: Sequence[fx.Node],
    kernel: str,
) -> None:
    """Raise RewriteError where a result differs from the original in anything but how it is computed."""
    for index, (result, original) in enumerate(zip(results, originals, strict=True)):
        which = f"kernel {kernel!r}" if len(results) == 1 else f"result {index + 1} of {len(results)} of {kernel!r}"
        _same_type(result, original, which)
    _same_memory(results, originals, operands, kernel)
    _writes_only_its_own(made, operands, kernel)


def _same_type(result: fx.Node, original: fx.Node, which: str) -> None:
    new, old = tensor_of(result), tensor_of(original)
    if new is None or old is None:
        whose = result if new is None else original
        raise RewriteError(f"{which} cannot be checked: {whose.name} has no tensor as example value")
    same = new.dtype == old.dtype and new.device == old.device and same_shape(tuple(new.shape), tuple(old.shape))
    if not SAME_TYPE(same):
        raise RewriteError(
            f"{which} gives {new.dtype} {tuple(new.shape)} on {new.device}; "
            f"the site gives {old.dtype} {tuple(old.shape)} on {old.device}"
        )
    if not SAME_STRIDES(_same_strides(new, old)):
        raise RewriteError(f"{which} gives strides {new.stride()}; the site gives {old.stride()}")


def lie_apart(a: fx.Node, b: fx.Node) -> bool:
    """Whether two nodes of one value are known to have other strides."""
    one, other = tensor_of(a), tensor_of(b)
    return one is not None and other is not None and not _same_strides(one, other)


def _same_strides(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the strides that matter are equal: those of dimensions that may have more than one element."""
    if any(same_size(size, 0) for size in b.shape):
        return True
    triples = zip(b.shape, a.stride(), b.stride(), strict=True)
    return all(same_size(size, 1) or same_size(mine, theirs) for size, mine, theirs in triples)


def _storage(node: fx.Node) -> int | None:
    return next(storages(node), None)


def _same_memory(
    results: Sequence[fx.Node], originals: Sequence[fx.Node], operands: Sequence[fx.Node], kernel: str
) -> None:
    """Results share memory with operands and with each other exactly where the originals do."""
    for i, (result, original) in enumerate(zip(results, originals, strict=True)):
        others = [(o, o) for o in operands] + list(zip(results, originals, strict=True))[:i]
        for new, old in others:
            if new is result and old is original:
                continue
            shared = _storage(result) == _storage(new) is not None
            was = _storage(original) == _storage(old) is not None
            if not SAME_MEMORY(shared == was or (shared and new is not old and _apart(result, new))):
                says = "shares memory with" if shared else "does not share memory with"
                raise RewriteError(f"what kernel {kernel!r} returns as {original.name} {says} {old.name}")


def _apart(a: fx.Node, b: fx.Node) -> bool:
    """Whether two tensors on one storage are known to have no element in common."""
    spans = []
    for tensor in (tensor_of(a), tensor_of(b)):
        assert tensor is not None
        start: object = tensor.storage_offset()
        sizes = [*tensor.shape, *tensor.stride()]
        if not isinstance(start, int) or not all(isinstance(s, int) for s in sizes):
            return False
        if tensor.numel() == 0:
            return True
        end = start + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        spans.append((start, end))
    (first, first_end), (second, second_end) = spans
    return first_end < second or second_end < first


def _writes_only_its_own(made: Sequence[fx.Node], operands: Sequence[fx.Node], kernel: str) -> None:
    foreign = {_storage(o) for o in operands} - {None}
    for node in made:
        for target in written_by(node):
            if not OPERANDS_KEPT(target not in operands and _storage(target) not in foreign):
                raise RewriteError(f"kernel {kernel!r} writes to {target.name}, an operand, in {node.name}")
