"""The engine as a pass: `rewrite` for captured graphs and exported programs, in place."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from fxfuse import compat
from fxfuse.engine import Fused, fuse
from fxfuse.errors import CaptureError, OptionError
from fxfuse.expectations import judge
from fxfuse.fallback import unchanged
from fxfuse.options import Options, parse
from fxfuse.publishing import publish, will_be_read
from fxfuse.report import Report
from fxfuse.rewriting import Dialect, dialect_of
from fxfuse.rewriting.examples import example_of
from fxfuse.view.leaves import leaves_of

COMPILES_NOTHING = ("inner", "inner_options", "mode")
"""Options for what happens after a rewrite; a pass has none of it."""


def rewrite(program: Any, *, options: Mapping[str, Any] | None = None) -> Report:
    """The engine as a pass: rewrite a captured graph in place.

    The graph keeps its inputs, so weights are read as they are (``separate``) or derived in the graph (``inline``).
    Whatever raises does so before anything was changed; nodes that stay keep their identity.

    Args:
        program: a ``torch.fx.GraphModule`` (Dynamo's, ``ExportedProgram.module()``, of AOT autograd, of Inductor's
            passes) or a ``torch.export.ExportedProgram``, whose signature follows. Its nodes must have example
            values (``meta["example_value"]`` or ``meta["val"]``), which a plain ``symbolic_trace`` does not record.
        options: as for :class:`Backend`, without ``inner``, ``inner_options`` and ``mode``. Kernels that are written
            in PyTorch reach an ATen graph as ATen operations, custom ops as one call.

    Raises:
        TypeError: neither a GraphModule nor an ExportedProgram.
        OptionError: as :class:`Backend`.
        CaptureError: the graph has no example values.
        ExpectationError: a count, glob or named pattern that the graph does not meet.
        ValueError: the program promises a value at a submodule's boundary that the rewrite would take away.
    """
    if not isinstance(program, fx.GraphModule | torch.export.ExportedProgram):
        raise TypeError(
            "fxfuse.rewrite takes a torch.fx.GraphModule or a torch.export.ExportedProgram; "
            f"given {type(program).__name__}."
        )
    parsed = parse_for_pass(options, "fxfuse.rewrite")
    if isinstance(program, fx.GraphModule):
        dialect = dialect_of(program.graph)
        fused = rewritten_copy(program, parsed, dialect=dialect, may_guard=not dialect.is_aten)
        judge(fused.report, parsed, whole=True)
        fused.commit()
    else:
        fused = _rewrite_program(program, parsed)
    publish(fused.report, parsed)
    return fused.report


def parse_for_pass(options: Mapping[str, Any] | None, who: str, besides: Sequence[str] = ()) -> Options:
    """The options, checked; those that mean nothing to a pass are refused."""
    parsed = parse(options)
    for name in (*COMPILES_NOTHING, *besides):
        if name in (options or {}):
            raise OptionError(f"{who} rewrites one graph and compiles nothing, so it takes no option {name!r}.")
    return parsed


def rewritten_copy(
    program: fx.GraphModule | torch.export.ExportedProgram,
    options: Options,
    *,
    dialect: Dialect,
    may_guard: bool = True,
) -> Fused:
    """A rewritten copy of the program's graph, whose ``commit`` makes the program's own what the copy is.

    Args:
        may_guard: whether somebody installs the guard that comparing a symbolic size adds.
    """
    gm = program if isinstance(program, fx.GraphModule) else program.graph_module
    holders = gm.graph.find_nodes(op="placeholder")
    examples = [example_of(node) for node in holders]
    _require_examples(gm.graph)
    try:
        with _surroundings(examples, dialect, may_guard):
            fused = fuse(
                gm,
                examples,
                options,
                may_add_inputs=False,
                leaves=leaves_of(program),
                dialect=dialect,
                record=will_be_read(options),
            )
    except OptionError:
        raise
    except Exception as error:
        if options.on_error == "raise":
            raise
        return unchanged(gm, options, error, "leaves the graph as it is")
    closed = [f"{n.target} ({type(gm.get_submodule(str(n.target))).__name__})" for n in _modules_called(gm)]
    if closed:
        what = f"{len(closed)} modules are called as a whole and were not looked into: {', '.join(closed[:8])}"
        fused.report.notes = (*fused.report.notes, what)
    return fused


@contextlib.contextmanager
def _surroundings(examples: Sequence[Any], dialect: Dialect, may_guard: bool) -> Iterator[None]:
    """What of the caller's modes may count for a graph of this dialect."""
    env = compat.shape_env_of(examples)
    with contextlib.ExitStack() as stack:
        if env is not None and (env.frozen or not may_guard):
            stack.enter_context(compat.without_new_guards(env))
        if dialect.is_aten:  # its casts are written out
            stack.enter_context(compat.without_autocast())
        if dialect is Dialect.INDUCTOR:  # its autograd is behind it
            stack.enter_context(torch.no_grad())
        yield


def _require_examples(graph: fx.Graph) -> None:
    calls = [n for n in graph.nodes if n.op in {"call_function", "call_method", "call_module"}]
    if calls and all(example_of(n) is None for n in calls):
        raise CaptureError(
            f"no node of the graph has an example value (meta['example_value'] or meta['val']; the first is "
            f"{calls[0].name}), and without dtypes and shapes nothing can be proven. Record them with "
            "torch.fx.passes.fake_tensor_prop.FakeTensorProp, or capture with torch.export."
        )


def _modules_called(gm: fx.GraphModule) -> list[fx.Node]:
    nodes = gm.graph.find_nodes(op="call_module")
    return [n for n in nodes if not isinstance(gm.get_submodule(str(n.target)), fx.GraphModule)]


# --- exported programs ------------------------------------------------------------------------------------------------


def _rewrite_program(program: torch.export.ExportedProgram, options: Options) -> Fused:
    gm = program.graph_module
    dialect = Dialect.EXPORT if program.dialect == "TRAINING" else Dialect.CORE
    fused = rewritten_copy(program, options, dialect=dialect, may_guard=False)
    judge(fused.report, options, whole=True)
    if fused.changed:
        _require_boundaries(program, fused.gm.graph)
        signature = copy.deepcopy(program.graph_signature)
        _name_outputs(signature, fused.gm.graph)
        compat.validate_program(program, fused.gm, signature)
        fused.commit()
        _name_outputs(program.graph_signature, gm.graph)
    return fused


def _name_outputs(signature: Any, graph: fx.Graph) -> None:
    """Make the signature name the nodes that the graph returns now; their order is as it was."""
    returned: Any = graph.output_node().args[0]
    for spec, node in zip(signature.output_specs, returned, strict=True):
        if isinstance(node, fx.Node):
            spec.arg.name = node.name


def _require_boundaries(program: torch.export.ExportedProgram, graph: fx.Graph) -> None:
    """Raise where the program promises a submodule's call signature whose values would be gone."""
    names = {node.name for node in graph.nodes}
    for entry in program.module_call_graph:
        if entry.signature is None or entry.fqn == "":
            continue
        for argument in (*entry.signature.inputs, *entry.signature.outputs):
            name = getattr(argument, "name", None)
            if name is not None and name not in names:
                raise ValueError(
                    f"the program preserves the call signature of {entry.fqn!r}, and a rewrite would take away its "
                    f"value {name!r}. Export without preserve_module_call_signature, or exclude the site with paths."
                )
