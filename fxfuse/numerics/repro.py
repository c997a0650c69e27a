"""`repro`: one site as a short script that runs by itself and says whether the kernel is within the contract."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

import fxfuse
from fxfuse.authoring import Pattern
from fxfuse.capture import capture, positional
from fxfuse.engine import Fused, Rewritten
from fxfuse.errors import OptionError
from fxfuse.kernels import Kernel
from fxfuse.numerics.isolate import Isolated
from fxfuse.numerics.trial import size_of
from fxfuse.numerics.written import definitions, has_future
from fxfuse.options import Options, parse
from fxfuse.report import Site
from fxfuse.view import LeafKind

_SCRIPT = '''\
"""One site of {pattern}: {what}.

Made by fxfuse {fxfuse} on torch {torch}, with random values in the site's shapes and dtypes. Ends with exit code 1
where the kernel is farther from float64 than the contract allows.
"""
{future}
import sys

import torch
from torch import device, inf, nan

import fxfuse
{imports}

torch.manual_seed(0)


class Site(torch.nn.Module):
    def __init__(self):
        super().__init__()
{parameters}

{forward}


{inputs}
model, args = Site(){to}, ({names})
kernels = {{pattern.name: {kernel!r}}}
options = {{"patterns": [pattern], "kernels": kernels, "weights": {weights!r}, "extra_memory": {memory!r}}}
with torch.no_grad():
    report = fxfuse.verify(model, args, options=options)
print(report)
sys.exit(0 if report.ok else 1)
'''


def repro(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    site: int = 0,
    options: Mapping[str, Any] | None = None,
) -> str:
    """A script that builds one site alone, with its operations, shapes, dtypes and pattern, and verifies it.

    Args:
        model, args, kwargs, options: as for :func:`fxfuse.explain`.
        site: its number among the report's sites (``explain(...).sites[3]``, ``#site-3`` on the page).

    Raises:
        OptionError: a bad option; no such site, or one that was not rewritten.
        CaptureError: Dynamo captured no graph.
    """
    args = positional("repro", args)
    parsed = parse(options)
    scripts: list[str | None] = []
    sites: list[Site] = []

    def runner(gm: fx.GraphModule, fused: Fused) -> Any:
        by_place = {one.site: one for one in fused.rewritten}
        for place, made in enumerate(fused.report.sites):
            wanted = len(sites) == site and place in by_place
            scripts.append(script_of(by_place[place], made, parsed) if wanted else None)
            sites.append(made)
        return gm.forward

    capture(model, args, kwargs or {}, parsed, runner)
    if not 0 <= site < len(sites):
        raise OptionError(f"site={site} is not there: the call has {len(sites)} sites, counted from 0.")
    script = scripts[site]
    if script is None:
        one = sites[site]
        raise OptionError(f"site={site} was {one.outcome}, and a repro shows a rewrite: {one.code} {one.reason}.")
    return script


def script_of(of: Rewritten, site: Site, options: Options) -> str:
    """The script for a site that an engine rewrote.

    Raises:
        RewriteError: as :class:`fxfuse.numerics.isolate.Isolated`.
    """
    alone = Isolated(of.editor, of.match, of.kernel, of.placement)
    original, _ = alone.modules()
    parameters, inputs, names, bindings = [], [], [], []
    for captured, holder in zip(alone.inputs, original.graph.find_nodes(op="placeholder"), strict=True):
        leaf = of.match.view.value(captured).leaf
        example = captured.meta.get("example_value", captured.meta.get("val"))
        if not isinstance(example, torch.Tensor):
            bindings.append(f"        {holder.name} = {_number(example)!r}")
        elif leaf is not None and leaf.kind is LeafKind.PARAMETER:
            parameters.append(f"        self.{holder.name} = torch.nn.Parameter({_tensor(example, weight=True)})")
            bindings.append(f"        {holder.name} = self.{holder.name}")
        elif leaf is not None and leaf.kind is LeafKind.BUFFER:
            parameters.append(f"        self.register_buffer({holder.name!r}, {_tensor(example, weight=True)})")
            bindings.append(f"        {holder.name} = self.{holder.name}")
        else:
            inputs.append(f"{holder.name} = {_tensor(example)}")
            names.append(holder.name)
    device = next((str(v.device) for v in of.match.outputs if v.device is not None), "cpu")
    return _SCRIPT.format(
        pattern=site.pattern,
        what=f"{' + '.join(m or 'the top level' for m in site.modules)}, kernel {of.kernel.name}",
        fxfuse=fxfuse.__version__,
        torch=torch.__version__,
        imports="\n".join(_imports(of.match.pattern, of.kernel)),
        future="\nfrom __future__ import annotations\n" if _is_postponed(of.match.pattern, of.kernel) else "",
        parameters="\n".join(parameters) or "        pass",
        forward="\n".join([f"    def forward({', '.join(['self', *names])}):", *bindings, *_body(original)]),
        inputs="\n".join(inputs),
        to="" if device == "cpu" else f".to({device!r})",
        names="".join(f"{name}{'' if device == 'cpu' else f'.to({device!r})'}, " for name in names).strip(),
        kernel=of.kernel.name,
        weights=of.placement or "auto",
        memory=max(options.extra_memory, 1.0) if of.placement == "copy" else options.extra_memory,
    )


def _number(example: Any) -> Any:
    if isinstance(example, torch.SymInt):
        return size_of(example)
    return float(example.node.hint) if isinstance(example, torch.SymFloat) else example


def _tensor(example: torch.Tensor, *, weight: bool = False) -> str:
    """Random values of this form; weights as small as trained ones are, so that nothing overflows."""
    shape = [size_of(size) for size in example.shape]
    if not (example.is_floating_point() or example.is_complex()):
        return f"torch.randint(0, 2, {shape}).to({example.dtype})"
    made = f"torch.randn({shape})"
    if weight:
        made = f"({made} * {shape[-1] ** -0.5:.4g})" if len(shape) > 1 else f"(1 + 0.1 * {made})"
    return f"{made}.to({example.dtype})"


def _body(gm: fx.GraphModule) -> list[str]:
    """The lines of the graph's code, behind its signature; what FX needs only to free memory is left out."""
    lines = [line.split(";  ")[0].rstrip() for line in gm.code.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("def forward")) + 1
    renamed = {f"{n.name} = {n.target}" for n in gm.graph.find_nodes(op="placeholder")}
    return [f"    {line}" for line in lines[start:] if line.strip() and line.strip() not in renamed]


def _imports(pattern: Pattern, kernel: Kernel) -> list[str]:
    """Lines that bring the pattern, as ``pattern``, and register the kernel.

    Raises:
        OptionError: no other script can have the pattern or the kernel.
    """
    home = inspect.getmodule(pattern.function)
    name = next((n for n, v in vars(home).items() if v is pattern), None) if home is not None else None
    if home is None or name is None:
        raise OptionError(f"pattern {pattern.name!r} ({pattern.line}) is not a name of its module{_ELSEWHERE}")
    function = inspect.unwrap(kernel.function)
    lines = []
    for module in dict.fromkeys([home.__name__, getattr(function, "__module__", None)]):
        if module is None or module == "fxfuse" or module.startswith("fxfuse."):
            continue
        known = sys.modules.get(module)
        file = getattr(known, "__file__", None)
        if module == "__main__":
            if file is None or not os.path.isfile(file):
                raise OptionError(f"pattern {pattern.name!r} or its kernel was defined at a prompt{_ELSEWHERE}")
            mine = [name] if module == home.__name__ else []
            mine += [function.__qualname__] if function.__module__ == module else []
            lines += _script_lines(file, dict.fromkeys(mine))
            lines += [f"pattern = {name}"] if module == home.__name__ else []
            continue
        if file and not module.partition(".")[0].startswith("fxfuse_patterns"):
            folder = os.path.dirname(os.path.abspath(file))
            for _ in range(module.count(".")):
                folder = os.path.dirname(folder)
            lines.append(f"sys.path.insert(0, {folder!r})")
        lines.append(f"from {module} import {name} as pattern" if module == home.__name__ else f"import {module}")
    return lines or [f"from {home.__name__} import {name} as pattern"]


_ELSEWHERE = (
    ", so that no other script can have it. Put it into a file of its own, at the top level, and import it from there: "
    "then a repro can do so, too."
)


def _is_postponed(pattern: Pattern, kernel: Kernel) -> bool:
    """Whether what is taken from a script has postponed annotations there."""
    functions = (inspect.unwrap(pattern.function), inspect.unwrap(kernel.function))
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return any(f.__module__ == "__main__" for f in functions) and file is not None and has_future(file)


def _script_lines(file: str, names: Iterable[str]) -> list[str]:
    """What the script defines these with; importing it would run it again."""
    folder = os.path.dirname(os.path.abspath(file))
    return [
        f"sys.path.insert(0, {folder!r})",
        f"\n# --- of {os.path.basename(file)}",
        *definitions(file, names),
        "\n# ---",
    ]
