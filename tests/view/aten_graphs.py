"""One model's graph at every level: Dynamo's, export's, export's decomposed, and Inductor's before and after grad."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxfuse import compat
from fxfuse.view import Leaf, View
from fxfuse.view.leaves import leaves_of

KINDS = ("dynamo", "export", "export module", "export decomposed", "pre-grad", "post-grad, before", "post-grad, after")
INDUCTOR = {
    "pre-grad": "pre_grad_custom_pass",
    "post-grad, before": "post_grad_custom_pre_pass",
    "post-grad, after": "post_grad_custom_post_pass",
}


@dataclass
class Captured:
    """A graph with what the place it was captured at knows of its inputs."""

    gm: fx.GraphModule
    leaves: list[Leaf] | None = None
    examples: Sequence[Any] = ()

    def view(self) -> View:
        return View(self.gm.graph, self.examples, leaves=self.leaves)


class _Seen(Exception):
    """Stops a compile: what a pass was given is all that a test wants."""


def dynamo_graph(model: Any, args: Sequence[Any], *, dynamic: bool = False) -> Captured:
    seen: list[Captured] = []

    def look(gm: fx.GraphModule, examples: list[Any]) -> Any:
        seen.append(Captured(gm, None, examples))
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=look, fullgraph=True, dynamic=dynamic)(*args)
    (only,) = seen
    return only


def exported(model: nn.Module, args: Sequence[Any], *, dynamic: bool = False) -> torch.export.ExportedProgram:
    """All but the last dimension of each input are dynamic where ``dynamic`` is set."""
    auto = torch.export.Dim.AUTO
    shapes = tuple(dict.fromkeys(range(a.dim() - 1), auto) for a in args) if dynamic else None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.export.export(model, tuple(args), dynamic_shapes=shapes)


def inductor_graph(model: Any, args: Sequence[Any], kind: str, *, dynamic: bool = False) -> Captured:
    """What Inductor hands to a custom pass of this kind."""
    seen: list[Captured] = []

    class Look(compat.custom_graph_pass()):  # type: ignore[misc]  # a base that each torch names elsewhere
        def __call__(self, graph: fx.Graph) -> None:
            gm: Any = graph.owning_module
            seen.append(Captured(gm, leaves_of(gm)))
            raise _Seen

        def uuid(self) -> Any:
            return None

    with _without_caches(), torch.no_grad(), _inductor_config({INDUCTOR[kind]: Look()}):
        torch._dynamo.reset()
        try:
            torch.compile(model, fullgraph=True, dynamic=dynamic)(*args)
        except Exception:
            if not seen:
                raise
    (only,) = seen
    return only


def graph_of(kind: str, model: nn.Module, args: Sequence[Any], *, dynamic: bool = False) -> Captured:
    """The model's graph of one of ``KINDS``."""
    if kind == "dynamo":
        return dynamo_graph(model, args, dynamic=dynamic)
    if kind in INDUCTOR:
        return inductor_graph(model, args, kind, dynamic=dynamic)
    program = exported(model, args, dynamic=dynamic)
    if kind == "export module":
        return Captured(program.module())
    if kind == "export decomposed":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = program.run_decompositions()
    return Captured(program.graph_module, leaves_of(program))


class Function(nn.Module):
    """A function of the module's named parameters and its input, as a module."""

    def __init__(self, body: Callable[..., Any], parameters: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.body = body
        for name, tensor in parameters.items():
            setattr(self, name, nn.Parameter(tensor, requires_grad=False))

    def forward(self, *args: Any) -> Any:
        return self.body(self, *args)


@contextmanager
def _inductor_config(patches: dict[str, Any]) -> Iterator[None]:
    import torch._inductor.config as config

    with config.patch(patches):
        yield


@contextmanager
def _without_caches() -> Iterator[None]:
    config: Any = torch.compiler.config
    with config.patch(force_disable_caches=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
