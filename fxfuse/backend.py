"""The Dynamo backend: capture -> view -> match -> select -> rewrite -> inner compile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from fxfuse import caching, compat, reuse
from fxfuse.engine import Fused, fuse
from fxfuse.errors import OptionError, readable
from fxfuse.expectations import judge
from fxfuse.fallback import unchanged
from fxfuse.options import Options, parse
from fxfuse.params import DerivedInputs
from fxfuse.publishing import publish, will_be_read
from fxfuse.report import Report, keep

log = logging.getLogger("fxfuse")

Compiled = Callable[..., Any]
_SO = "compiles the original graph"


class Backend:
    """A backend for ``torch.compile`` with options of its own, checked when it is made.

    Two backends with equal options are equal, so Dynamo compiles once for both.

    Args:
        mode: a torch.compile mode, such as ``"reduce-overhead"``; Inductor's.
        options: fxfuse's options as a dict, as in ``torch.compile(options=...)``.
        keywords: the same options as keywords.

    Raises:
        OptionError: (a ValueError) an unknown option, name, value or mode.
    """

    def __init__(self, *, mode: str | None = None, options: Mapping[str, Any] | None = None, **keywords: Any) -> None:
        self.options = parse(options, mode=mode, **keywords)
        self._given = {**(options or {}), **keywords}
        self._mode = mode
        self.__name__ = "fxfuse"

    def __call__(
        self,
        gm: fx.GraphModule,
        example_inputs: Sequence[Any],
        *,
        mode: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Compiled:
        """Compile one captured graph. ``mode`` and ``options`` are torch.compile's, beside this backend's own."""
        own = self.options
        if mode is not None or options:
            try:
                own = parse({**self._given, **(options or {})}, mode=mode or self._mode)
            except OptionError as error:
                raise readable(error) from None
        return compile_graph(gm, example_inputs, own)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Backend) and self.options == other.options

    def __hash__(self) -> int:
        return hash((Backend, self.options.patterns, self.options.kernels, self.options.inner, self.options.mode))

    def __repr__(self) -> str:
        return f"fxfuse.Backend({self.options.describe()})"


def fxfuse(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """`torch.compile(model, backend="fxfuse")`: found by entry point, options as torch.compile passes them."""
    try:
        parsed = parse(options, mode=mode)
    except OptionError as error:
        raise readable(error) from None
    return compile_graph(gm, example_inputs, parsed)


def compile_graph(gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options) -> Compiled:
    """Rewrite a copy of ``gm`` and compile it; compile ``gm`` itself where fxfuse fails (``on_error="fallback"``)."""
    try:
        fused = fuse(gm, example_inputs, options, record=will_be_read(options))
        judge(fused.report, options, whole=compat.is_fullgraph())
    except OptionError as error:
        raise readable(error) from None
    except Exception as error:
        if options.on_error == "raise":
            raise
        fused = unchanged(gm, options, error, _SO)
    start = time.perf_counter()
    try:
        compiled = _inner(fused, example_inputs, options)
    except Exception as error:
        if not fused.changed or options.on_error == "raise":
            raise
        fused = unchanged(gm, options, error, _SO, fused.report.sites)
        compiled = _inner(fused, example_inputs, options)
    fused.report.seconds["inner"] = time.perf_counter() - start
    if fused.changed:
        _forget_examples(fused.gm)
    finish(fused.report, options)
    return compiled


def finish(report: Report, options: Options) -> None:
    """Keep the report, write it where the options say so, and log its one line."""
    keep(report)
    publish(report, options)


def _inner(fused: Fused, example_inputs: Sequence[Any], options: Options) -> Compiled:
    compiled = inner_compiled(fused, example_inputs, options)
    return _with_derived(compiled, fused, example_inputs, options) if fused.derived else compiled


def inner_compiled(fused: Fused, example_inputs: Sequence[Any], options: Options) -> Compiled:
    """The rewritten graph as the inner compiler makes it; it takes derived weights as further arguments."""
    gm, examples = fused.gm, list(example_inputs)
    if fused.derived:
        holders = [n for n in gm.graph.nodes if n.op == "placeholder"]
        examples += [n.meta["example_value"] for n in holders[len(examples) :]]
    compiled, record = reuse.compile_graph(gm, examples, options, _compiler(options), fused.new_nodes)
    fused.report.reuse = (record,)
    return compiled


def _compiler(options: Options) -> reuse.Compiler:
    """The inner compiler, as a function of a graph and its example inputs."""
    if options.inner == "eager":
        return lambda gm, examples: gm.forward
    if options.inner == "aot_eager":
        return torch._dynamo.lookup_backend("aot_eager")
    patches = compat.mode_options(options.mode) if options.mode not in (None, "default") else {}
    patches.update(dict(options.inner_options))
    tag = caching.tag(options.patterns)

    def inductor(gm: fx.GraphModule, examples: list[Any]) -> Compiled:
        with compat.tagged_cache(tag):
            return compat.compile_fx(gm, examples, dict(patches))

    return inductor


def _with_derived(compiled: Compiled, fused: Fused, example_inputs: Sequence[Any], options: Options) -> Compiled:
    """The compiled graph, fed on each call with the derived weights of that call's live arguments."""
    inputs = DerivedInputs(fused.derived, on_note=_note_on(fused.report), extra_memory=options.extra_memory)
    if all(_is_real(example_inputs[p]) for one in fused.derived for p in one.positions):
        inputs(example_inputs)  # weights move now, after the inner compile, and not during the first call

    def call(*args: Any) -> Any:
        return compiled(*args, *inputs(args))

    return call


def _forget_examples(gm: fx.GraphModule) -> None:
    """Drop what was needed to compile: fake tensors lead to weak references on every parameter of the model."""
    for node in gm.graph.nodes:
        for key in ("example_value", "grapharg", "tensor_dict"):
            node.meta.pop(key, None)


def _is_real(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and not isinstance(tensor, compat.FakeTensor)


def _note_on(report: Report) -> Callable[[str], None]:
    def note(sentence: str) -> None:
        report.notes = (*report.notes, sentence)
        log.info("fxfuse: %s", sentence)

    return note
