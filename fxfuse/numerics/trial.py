"""A site measured at compile time, on random inputs: what ``verify=True`` asks before a site is rewritten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxfuse.compat import FakeTensor, size_hint
from fxfuse.errors import first_line
from fxfuse.kernels import Kernel
from fxfuse.match import Match
from fxfuse.numerics.exact import NotMeasured
from fxfuse.numerics.isolate import Isolated
from fxfuse.numerics.measure import (
    SENSIBLE,
    KernelError,
    Measured,
    Verdict,
    broken,
    judge,
    measure,
    not_measured,
    pooled,
)
from fxfuse.numerics.state import random_state
from fxfuse.rewriting import Editor
from fxfuse.view import Leaf, LeafKind

KINDS = ("plain", "outliers", "small", "shifted", "plain", "outliers")
"""The activations of each seed: of size one; with channels x100, as real ones have; so small that an eps counts; and
with a mean far from zero, where differences cancel."""
OUTLIERS, SMALL, SHIFT = 100.0, 1e-3, 8.0


def trial(editor: Editor, match: Match, kernel: Kernel, placement: str, examples: Sequence[Any]) -> Verdict:
    """The verdict on a site for random activations of its shapes (hints, where symbolic) and the live parameters.

    Args:
        examples: the live arguments of the captured graph; weights that are not among them are random, too.
    """
    found: dict[str, list[Measured]] = {kind: [] for kind in KINDS}
    try:
        site = Isolated(editor, match, kernel, placement)
        leaves = [match.view.value(node).leaf for node in site.inputs]
        for seed, kind in enumerate(KINDS):
            try:
                found[kind] += _on_random(site, leaves, examples, seed, kind)
            except NotMeasured:
                if kind == "plain":
                    raise
    except NotMeasured as why:
        return not_measured(str(why))
    except KernelError as error:
        return broken(kernel.name, error)
    except Exception as error:  # whatever it is, the site was not shown to be right
        return not_measured(first_line(error))
    told = [pooled(many) for kind, many in found.items() if kind == "plain" or _tells(many)]
    return judge([m for many in told for m in many], kernel.name, f"{len(KINDS)} random inputs")


def _tells(found: Sequence[Measured]) -> bool:
    """Whether eager can do with such inputs: tiny squares underflow in fp16, and large ones overflow."""
    return all(m.errors.eager.rms <= SENSIBLE for m in found)


def _on_random(
    site: Isolated, leaves: Sequence[Leaf | None], examples: Sequence[Any], seed: int, kind: str
) -> list[Measured]:
    with torch.no_grad(), random_state():
        torch.manual_seed(seed)
        values = [_value(node, leaf, examples, kind) for node, leaf in zip(site.inputs, leaves, strict=True)]
        return measure(site, values, site.original(values), values)


def _value(node: fx.Node, leaf: Leaf | None, examples: Sequence[Any], kind: str) -> Any:
    """The live argument, for a weight and for indices (random ones could be out of range); else a random one."""
    is_weight = leaf is not None and leaf.kind in (LeafKind.PARAMETER, LeafKind.BUFFER)
    live = _live(leaf, examples)
    if live is not None and (is_weight or not live.is_floating_point()):
        return live
    return random_value(node, "weight" if is_weight else kind)


def _live(leaf: Leaf | None, examples: Sequence[Any]) -> Tensor | None:
    if leaf is None or leaf.position is None or leaf.position >= len(examples):
        return None
    example = examples[leaf.position]
    is_real = isinstance(example, Tensor) and not isinstance(example, FakeTensor)
    return example.detach() if is_real else None


def random_value(node: fx.Node, kind: str) -> Any:
    """A value of the form that this node had when the graph was captured."""
    example = node.meta.get("example_value", node.meta.get("val"))
    if isinstance(example, torch.SymInt):
        return size_of(example)
    if isinstance(example, torch.SymFloat):
        return float(example.node.hint)
    if not isinstance(example, Tensor):
        raise NotMeasured(f"{node.name} has no example value to make a random one of")
    shape = [size_of(size) for size in example.shape]
    if not (example.is_floating_point() or example.is_complex()):
        return torch.randint(0, 2, shape, device=example.device).to(example.dtype)
    wide = torch.float64 if example.is_floating_point() else torch.complex128
    made = torch.randn(shape, dtype=wide, device=example.device)
    if kind == "weight":
        made = made * shape[-1] ** -0.5 if len(shape) > 1 else 1.0 + 0.1 * made
    elif kind == "small":
        made *= SMALL
    elif kind == "shifted":
        made += SHIFT
    elif kind == "outliers" and shape:
        made[..., :: max(1, shape[-1] // 2)] *= OUTLIERS
    return _strided(made.to(example.dtype), [size_of(stride) for stride in example.stride()])


def _strided(made: Tensor, strides: list[int]) -> Tensor:
    """The tensor in a layout of its own, where that has a place for each element."""
    by_stride = sorted((stride, size) for stride, size in zip(strides, made.shape, strict=True) if size > 1)
    reach = 1
    for stride, size in by_stride:
        if stride < reach:
            return made
        reach = stride * size
    return torch.empty_strided(made.shape, strides, dtype=made.dtype, device=made.device).copy_(made)


def size_of(size: int | torch.SymInt) -> int:
    hint = size_hint(size)
    if hint is None:
        raise NotMeasured(f"the size {size} has no value yet")
    return hint
