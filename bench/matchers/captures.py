"""One model's graph at the level that each matcher works on, and long graphs made by repeating a captured one."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxfuse import compat
from fxfuse.view.leaves import leaves_of


def dynamo_graph(
    model: Callable[..., Any], inputs: Sequence[Any], *, dynamic: bool = False
) -> tuple[fx.GraphModule, list[Any]]:
    """The one graph that Dynamo captures of a call, and its live arguments."""
    seen: list[tuple[fx.GraphModule, list[Any]]] = []

    def look(gm: fx.GraphModule, examples: list[Any]) -> Any:
        seen.append((gm, examples))
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=look, fullgraph=True)(*_marked(inputs, dynamic))
    (only,) = seen
    return only


def exported(model: nn.Module, inputs: Sequence[Tensor], *, dynamic: bool = False) -> torch.export.ExportedProgram:
    """All but the last dimension of each input are dynamic where ``dynamic`` is set."""
    with quiet(), torch.no_grad():
        return torch.export.export(model, tuple(inputs), dynamic_shapes=_dynamic(inputs) if dynamic else None)


def export_graph(
    model: nn.Module, inputs: Sequence[Tensor], *, dynamic: bool = False
) -> tuple[torch.export.ExportedProgram, fx.GraphModule]:
    """Export's inference graph: casts that change nothing are gone, ``linear`` is one operation.

    Its assertions are erased. They read interior values, and a matcher that does not know them finds nothing.
    """
    with quiet(), torch.no_grad():
        program = exported(model, inputs, dynamic=dynamic).run_decompositions({})
    gm = program.graph_module
    for node in gm.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
        gm.graph.erase_node(node)
    gm.recompile()
    return program, gm


class _Seen(Exception):
    """Stops a compile at the graph that was asked for."""


LEAVES = "fxfuse_bench_leaves"
"""Where the ``meta`` of a post-grad graph keeps what its placeholders are: known only while it is compiled."""


def post_grad_graph(
    model: Callable[..., Any], inputs: Sequence[Any], *, dynamic: bool = False
) -> tuple[fx.GraphModule, list[Any]]:
    """What Inductor gives to a custom pass before its own post-grad passes, and real arguments for it."""
    seen: list[fx.GraphModule] = []
    arguments: list[Any] = []

    class Look(compat.custom_graph_pass()):  # type: ignore[misc]  # a base that each torch names elsewhere
        def __call__(self, graph: fx.Graph) -> None:
            gm: Any = graph.owning_module
            gm.meta[LEAVES] = leaves_of(gm)
            seen.append(gm)
            raise _Seen

        def uuid(self) -> Any:
            return None

    def backend(gm: fx.GraphModule, examples: list[Any]) -> Any:
        from torch._inductor.compile_fx import compile_fx

        arguments.extend(a.node.hint if isinstance(a, torch.SymInt) else a for a in examples)
        return compile_fx(gm, examples)

    from torch._inductor import config as inductor_config

    config: Any = torch.compiler.config
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet())
        stack.enter_context(torch.no_grad())
        stack.enter_context(config.patch(force_disable_caches=True))
        stack.enter_context(inductor_config.patch(post_grad_custom_pre_pass=Look()))
        torch._dynamo.reset()
        try:
            torch.compile(model, backend=backend, fullgraph=True)(*_marked(inputs, dynamic))
        except Exception:
            if not seen:
                raise
    (only,) = seen
    return only, arguments


def onnx_model(model: nn.Module, inputs: Sequence[Tensor], *, dynamic: bool = False) -> Any:
    """What ``torch.onnx.export`` makes of the module (an ``onnx_ir.Model``), its constants folded by the optimizer."""
    shapes = _dynamic(inputs) if dynamic else None
    with quiet(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        program: Any = torch.onnx.export(
            model, tuple(inputs), dynamo=True, optimize=True, verbose=False, dynamic_shapes=shapes
        )
    return program.model


def _marked(inputs: Sequence[Any], dynamic: bool) -> Sequence[Any]:
    """Sizes are marked one by one: ``torch.compile(dynamic=True)`` would make an input of a module's eps, too."""
    for x in inputs if dynamic else ():
        for dim in range(x.dim() - 1):
            torch._dynamo.mark_dynamic(x, dim)
    return inputs


def _dynamic(inputs: Sequence[Tensor]) -> tuple[Any, ...]:
    auto = torch.export.Dim.AUTO
    each = tuple(dict.fromkeys(range(x.dim() - 1), auto) for x in inputs)
    return (each,)  # all inputs are one *args


@contextmanager
def quiet() -> Iterator[None]:
    """Captures warn about much that is no matter here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
