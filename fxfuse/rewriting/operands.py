"""What a kernel is called with: its operands by name, with graph nodes where tensors will be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxfuse.kernels import Kernel
from fxfuse.params import Transform
from fxfuse.rewriting.errors import RewriteError
from fxfuse.rewriting.examples import example_of, flat

Give = Callable[[fx.Node], Any]


@dataclass(frozen=True)
class Inline:
    """An operand that the graph itself computes from other ones."""

    transform: Transform
    sources: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Call:
    """One call of a kernel, ready to be made on proxies or on tensors.

    Args:
        operands: name -> node, literal, tuple of these, or :class:`Inline`.
        results: how many tensors the kernel has to return.
        several: whether they come as a tuple.
    """

    kernel: Kernel
    operands: Mapping[str, Any]
    results: int
    several: bool

    @property
    def nodes(self) -> list[fx.Node]:
        """The nodes that the call reads, each once."""
        found: dict[fx.Node, None] = {}
        for operand in self.operands.values():
            read = operand.sources if isinstance(operand, Inline) else flat(operand)
            found.update(dict.fromkeys(v for v in read if isinstance(v, fx.Node)))
        return list(found)

    def __call__(self, give: Give, kind: type) -> tuple[Any, ...]:
        """Run the kernel on what ``give`` makes of each node. Its results are of ``kind``.

        Raises:
            RewriteError: it returned something else, or another number of results.
        """
        given = {name: _resolve(self.operands[name], give) for name in self.kernel.parameters}
        returned = self.kernel.function(**given)
        name = self.kernel.name
        if self.several and isinstance(returned, fx.Proxy) and isinstance(example_of(returned.node), tuple | list):
            returned = tuple(returned)
        if not self.several:
            if not isinstance(returned, kind):
                raise RewriteError(f"kernel {name!r} returned {type(returned).__name__}, not one tensor")
            return (returned,)
        if not isinstance(returned, tuple | list) or not all(isinstance(r, kind) for r in returned):
            what = type(returned).__name__
            if isinstance(returned, tuple | list):
                what += f" of {', '.join(type(r).__name__ for r in returned)}"
            raise RewriteError(f"kernel {name!r} returned {what}, not a tuple of {self.results} tensors")
        if len(returned) != self.results:
            raise RewriteError(f"kernel {name!r} returned {len(returned)} tensors; the site has {self.results} results")
        return tuple(returned)


def _resolve(operand: Any, give: Give) -> Any:
    if isinstance(operand, fx.Node):
        return give(operand)
    if isinstance(operand, Inline):
        return operand.transform(*map(give, operand.sources))
    if isinstance(operand, tuple):
        return tuple(_resolve(item, give) for item in operand)
    return operand
