"""`InductorPass`: the engine as one of Inductor's custom passes, for those who compile with Inductor themselves."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any

from torch import fx

from fxfuse import caching, compat, library, machine, results
from fxfuse.errors import PatternError
from fxfuse.kernels import kernels_for
from fxfuse.passes import parse_for_pass, rewritten_copy
from fxfuse.publishing import publish
from fxfuse.report import Report
from fxfuse.rewriting import Dialect, dialect_of

_JUDGED = ("expect", "expect_rewritten", "on_miss")
_LIMIT = 256

_Base: Any = compat.custom_graph_pass()


class InductorPass(_Base):
    """A pass for Inductor's ``post_grad_custom_pre_pass`` and its kind, and for pass managers built on them (vLLM).

    ``torch.compile(model, options={"post_grad_custom_pre_pass": fxfuse.InductorPass(patterns=[...])})``. Fits
    ``pre_grad_custom_pass`` (torch-level graphs, before autograd), ``joint_custom_pre_pass``,
    ``joint_custom_post_pass``, ``post_grad_custom_pre_pass`` and ``post_grad_custom_post_pass`` (ATen graphs; there,
    forward and backward come one after the other). Before the last one Inductor has made its own fusions: where a
    residual was added to a site's result, both are one ``addmm``, and the site is missed. The pass changes nothing but
    the graph that it is given.

    Attributes:
        options: the parsed options.
        reports: what it did with its latest 256 graphs, newest last. Inductor does not run passes for a graph that it
            finds in its cache.

    Args:
        options: those of :class:`Backend` that speak of one graph: none of ``inner``, ``inner_options``, ``mode``
            (Inductor's own business here), ``expect``, ``expect_rewritten`` and ``on_miss`` (a call has several
            graphs; look at ``reports``).

    Raises:
        OptionError: a bad option.
    """

    def __init__(self, **options: Any) -> None:
        self.options = parse_for_pass(options, "InductorPass", _JUDGED)
        self._reports: deque[Report] = deque(maxlen=_LIMIT)

    @property
    def reports(self) -> tuple[Report, ...]:
        return tuple(self._reports)

    def __call__(self, graph: fx.Graph) -> None:
        """Rewrite ``graph`` in place. What fails leaves it as it was (``on_error="raise"``: and raises)."""
        gm = graph.owning_module
        if not isinstance(gm, fx.GraphModule) or gm.graph is not graph:
            raise TypeError(f"InductorPass takes the graph of a GraphModule; given one of {type(gm).__name__}.")
        dialect = Dialect.INDUCTOR if dialect_of(graph).is_aten else Dialect.TORCH
        fused = rewritten_copy(gm, self.options, dialect=dialect)
        fused.commit()
        self._reports.append(fused.report)
        publish(fused.report, self.options)

    def uuid(self) -> str:
        """What Inductor's cache keys hold of this pass.

        Equal where fxfuse, torch, the options, the patterns with their constraints, and the kernels with their
        requirements and transforms are equal; in another process, too.
        """
        self._register_ops()
        facts = (self.options.describe(), sorted(self.options.named), compat.cpu_multiplies_bf16())
        return caching.tag(self.options.patterns, *facts)

    def _register_ops(self) -> None:
        """Have the ops at hand that a cached graph may call: Inductor asks for the uuid before it looks there."""
        for pattern in self.options.patterns:
            named = self.options.kernels_named(pattern.name)
            measured = results.current().arms(library.qualified(pattern))
            for kernel in kernels_for(pattern).values():
                if not machine.device_types().intersection(kernel.requires.device or {"cpu"}):
                    continue
                if kernel.default or kernel.name in named or kernel.name in measured:
                    with contextlib.suppress(ImportError, PatternError):  # then no graph of this process can hold it
                        kernel.register_op()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InductorPass) and self.options == other.options

    def __hash__(self) -> int:
        return hash((InductorPass, self.options.patterns, self.options.kernels))

    def __repr__(self) -> str:
        return f"fxfuse.InductorPass({self.options.describe()})"
