"""`region`: a pattern given by module paths instead of structure.

The contract of transformers' KernelConfig, ``{("model.layers.*.post_attention_layernorm", "model.layers.*.mlp"):
kernel}``, without its surgery and with a check: what the named modules computed must hang together and be closed.
"""

from __future__ import annotations

import functools
import re
import sys
from typing import Any

from fxfuse.authoring.pattern import Pattern
from fxfuse.authoring.terms import Line
from fxfuse.errors import PatternError

_WILD = re.compile(r"\*\*|\*")


class Region(Pattern):
    """A pattern whose sites are what certain modules computed; made by :func:`region`.

    Its operands are known only at a site: ``x`` (or ``x_1``, ``x_2``, ... in the order in which they are read), each
    parameter and buffer by its path below what the globs have in common, with underscores (``mlp_gate_proj_weight``),
    and ``constants``, the float literals of the region in graph order, for a kernel that takes them.
    """

    def __init__(self, globs: tuple[str, ...], name: str, priority: int) -> None:
        frame: Any = sys._getframe(2)
        self.name = name
        self.globs = globs
        self.function = self._no_reference
        self.priority = priority
        self.line = Line(frame.f_code.co_filename, frame.f_lineno)
        self.captures = {}
        self.forms = ()
        self.constraints = []
        self.__doc__ = f"What the modules {', '.join(globs)} compute."
        self.__name__ = name

    def _no_reference(self, **operands: Any) -> Any:
        raise PatternError(f"region {self.name!r} is given by paths, so it has no reference function.")

    @property
    def size(self) -> int:
        """How many operations it spans: as many as the modules have."""
        return 0

    def describe(self) -> str:
        """The region as text."""
        return f"{self.name}  ({self.line})\n" + "\n".join(f"  modules: {glob}" for glob in self.globs)

    def __reduce__(self) -> Any:
        return functools.partial(region, *self.globs, name=self.name, priority=self.priority), ()

    def __repr__(self) -> str:
        return f"<fxfuse region {self.name!r} of {', '.join(self.globs)}>"


def region(*globs: str, name: str | None = None, priority: int = 0) -> Region:
    """A pattern given by module paths: the subgraph that these modules produced, in this order.

    ``region("model.layers.*.post_attention_layernorm", "model.layers.*.mlp")`` has a site in each layer. ``*`` is one
    segment of a path, ``**`` any number; all globs have the same wildcards, and a site is where they stand for the
    same. What the modules computed must be connected, and only the last module's results may be read outside. Where
    that is not so the compile raises, naming the value and its reader: the modules are not adjacent, whatever they are
    called. No reference vouches for a region's kernel, so it is tried on random inputs at each site before it is
    trusted (VERIFY).

    Args:
        globs: at least one, in the order in which data flows.
        name: what kernels, options and reports call it; by default made of the last segments of the globs.
        priority: as of :func:`fxfuse.pattern`.

    Raises:
        PatternError: no globs, something that is none, or globs with different wildcards.
    """
    if not globs or not all(isinstance(g, str) and g for g in globs):
        raise PatternError(f"region takes module paths such as 'model.layers.*.mlp'; given {globs!r}.")
    wild = {tuple(_WILD.findall(g)) for g in globs}
    if len(wild) > 1:
        raise PatternError(f"the globs of a region have the same wildcards, in the same order; given {list(globs)!r}.")
    made = name if name is not None else "_".join(re.sub(r"\W+", "_", g.rsplit(".", 1)[-1]).strip("_") for g in globs)
    if not isinstance(made, str) or not made.isidentifier():
        raise PatternError(f"a region's name is an identifier; given {made!r}. Pass name=.")
    return Region(globs, made, priority)
