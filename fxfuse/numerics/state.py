"""What a trial call may change, put back: random state, buffers, and tensors that the call writes in place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxfuse.view.effects import Effects


def random_state() -> Any:
    """A context after which the generators of the CPU and of every CUDA device are as before."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return torch.random.fork_rng(devices=list(devices))


class Saved:
    """Copies of tensors, made before a call writes to them."""

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[Tensor, Tensor, int | None]] = {}

    def add(self, tensor: Any) -> None:
        if isinstance(tensor, Tensor) and not tensor.is_meta and id(tensor) not in self._tensors:
            self._tensors[id(tensor)] = tensor, tensor.detach().clone(), _version(tensor)

    def guarding(self, gm: fx.GraphModule, run: Callable[..., Any]) -> Callable[..., Any]:
        """``run``, where the arguments that the captured graph writes to are saved first."""
        effects = Effects(gm.graph)
        holders = gm.graph.find_nodes(op="placeholder")
        written = [i for i, node in enumerate(holders) if effects.is_written(node)]

        def guarded(*args: Any) -> Any:
            for i in written:
                self.add(args[i])
            return run(*args)

        return guarded if written else run

    def restore(self) -> None:
        with torch.no_grad():
            for tensor, copy, version in self._tensors.values():
                if _version(tensor) != version or not _equal(tensor, copy):
                    tensor.copy_(copy)


@contextlib.contextmanager
def preserved(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Saved]:
    """For one call of ``model``: its buffers and tensor arguments are afterwards the objects and the values they were.

    Parameters are saved only where a captured graph writes to them (:meth:`Saved.guarding`). What else a forward keeps
    in Python, such as a counter or a cache object that is given to it, is not known here and stays.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    buffers = [(module._buffers, dict(module._buffers)) for module in modules]
    saved = Saved()
    for tensor in (*(b for _, named in buffers for b in named.values()), *pytree.tree_leaves((args, kwargs))):
        saved.add(tensor)
    try:
        with random_state():
            yield saved
    finally:
        for live, named in buffers:
            live.clear()
            live.update(named)
        saved.restore()


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _equal(tensor: Tensor, copy: Tensor) -> bool:
    """Whether nothing was written past the version counter, as ``buffer.data.mul_()`` does."""
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) or tensor.layout is not torch.strided:
        return True  # comparing may be as dear as it likes, or not be there
    return torch.equal(tensor, copy)
