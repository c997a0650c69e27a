"""A captured graph as a script that a person can paste, run and look at."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import fx

from fxfuse.authoring import Pattern
from fxfuse.checking.examples import Captured
from fxfuse.compat import size_hint

_HEADER = """\
import torch
from torch import device, inf, nan
import fxfuse
{pattern}


class Repro(torch.nn.Module):
    def __init__(self):
        super().__init__()
{parameters}

{forward}

{inputs}
model, args = Repro(), ({names})
options = {{"patterns": [pattern]{kernels}}}
with torch.no_grad():
    print(fxfuse.explain(model, args, options=options))
    fused = torch.compile(model, backend=fxfuse.Backend(**options, inner="eager"))
    torch.testing.assert_close(fused(*args), model(*args))
"""


def repro(pattern: Pattern, gm: fx.GraphModule, captured: Captured, kernel: str | None = None) -> str:
    """A script that builds the graph's module, prints what fxfuse does with it, and compares with eager PyTorch."""
    parameters, inputs, names, bindings = [], [], [], []
    for node, argument in zip(gm.graph.find_nodes(op="placeholder"), captured.live, strict=True):
        name = node.name
        if isinstance(argument, torch.nn.Parameter):
            parameters.append(f"        self.{name} = torch.nn.Parameter({_tensor(argument)}, requires_grad=False)")
            bindings.append(f"        {name} = self.{name}")
        elif isinstance(argument, torch.Tensor):
            inputs.append(f"{name} = {_tensor(argument)}")
            names.append(name)
        else:
            bindings.append(
                f"        {name} = {size_hint(argument) if isinstance(argument, torch.SymInt) else argument!r}"
            )
    return _HEADER.format(
        pattern=_import(pattern),
        parameters="\n".join(parameters) or "        pass",
        forward="\n".join([f"    def forward(self, {', '.join(names)}):", *bindings, *_body(gm)]),
        inputs="\n".join(inputs),
        kernels=f', "kernels": {{{pattern.name!r}: {kernel!r}}}' if kernel is not None else "",
        names="".join(f"{name}, " for name in names).strip(),
    )


def _tensor(tensor: torch.Tensor) -> str:
    shape = tuple(tensor.shape)
    if tensor.is_floating_point() or tensor.is_complex():
        return f"torch.randn({shape}).to({tensor.dtype})"
    return f"torch.randint(0, 2, {shape}).to({tensor.dtype})"


def _body(gm: fx.GraphModule) -> list[str]:
    """The lines of the graph's code, behind its signature; what FX needs only to free memory is left out."""
    lines = [line.split(";  ")[0].rstrip() for line in gm.code.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("def forward")) + 1
    renamed = {f"{n.name} = {n.target}" for n in gm.graph.find_nodes(op="placeholder")}
    return [f"    {line}" for line in lines[start:] if line.strip() and line.strip() not in renamed]


def _import(pattern: Pattern) -> str:
    module: Any = inspect.getmodule(pattern.function)
    name = next((n for n, v in vars(module).items() if v is pattern), None) if module is not None else None
    if name is None:
        return f"pattern = ...  # {pattern.name}, defined at {pattern.line}"
    return f"from {module.__name__} import {name} as pattern"
