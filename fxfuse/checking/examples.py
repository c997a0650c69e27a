"""Example modules: a pattern's reference as a small model, with example tensors, captured as Dynamo captures models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from fxfuse import compat
from fxfuse.authoring import Pattern
from fxfuse.authoring.captures import is_param
from fxfuse.authoring.sizes import DimExpr, dims_in
from fxfuse.checking.failures import CheckError
from fxfuse.checking.running import call, tensors_in
from fxfuse.checking.sizing import Sizing, size_for
from fxfuse.checking.ways import Way, ways
from fxfuse.errors import first_line

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OUTLIER = 100.0
"""A few channels of an input are this much larger, as in real models, where the numeric contract is checked."""


@dataclass(frozen=True)
class Captured:
    """A graph as Dynamo captures it, the live arguments of its placeholders, and the names of tensors among them."""

    gm: fx.GraphModule
    live: tuple[Any, ...]
    names: tuple[str | None, ...]

    def arguments(self, tensors: Mapping[str, torch.Tensor]) -> list[Any]:
        """The graph's arguments with other tensors of the same shapes in place of the live ones."""
        pairs = zip(self.names, self.live, strict=True)
        return [argument if name is None else tensors[name] for name, argument in pairs]

    def resized(self, tensors: Mapping[str, torch.Tensor]) -> list[Any] | None:
        """The same for tensors of other sizes, where the graph's symbols leave them free; None where they do not."""
        holders = self.gm.graph.find_nodes(op="placeholder")
        sizes: dict[str, int] = {}
        for node, name in zip(holders, self.names, strict=True):
            if name is None:
                continue
            for symbol, size in zip(node.meta["example_value"].shape, tensors[name].shape, strict=True):
                if sizes.setdefault(str(symbol), size) != size:
                    return None
        arguments = []
        for node, name, argument in zip(holders, self.names, self.live, strict=True):
            symbol = str(node.meta["example_value"])
            arguments.append(tensors[name] if name is not None else sizes.get(symbol, argument))
        fixed = all(size == sizes[str(size)] for size in map(int, (s for s in sizes if s.isdigit())))
        return arguments if fixed else None


@dataclass(frozen=True)
class Example:
    """One way of a pattern with concrete tensors.

    Attributes:
        dtype: of every floating-point capture that does not declare others.
        dtypes: captures that have another dtype than ``dtype``.
        symbolic: whether Dynamo captures it with symbolic sizes.
        as_inputs: parameters that are passed as runtime inputs.
        shapes: shapes that differ from the sizing's.
        positive: whether all values are, because the reference is not finite otherwise.
        strided: whether inputs are stored in another order than that of their dimensions.
    """

    way: Way
    dtype: torch.dtype
    sizing: Sizing
    symbolic: bool = False
    seed: int = 0
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    as_inputs: frozenset[str] = frozenset()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    positive: bool = False
    strided: bool = False

    @property
    def pattern(self) -> Pattern:
        return self.way.pattern

    @property
    def variant(self) -> Mapping[str, str]:
        return self.way.variant

    def dtype_of(self, name: str) -> torch.dtype:
        """The example's dtype for a capture, or the first one that the capture allows."""
        allowed = getattr(self.pattern.captures[name], "dtypes", None)
        wanted = self.dtypes.get(name, self.dtype)
        return wanted if not allowed or wanted in allowed else allowed[0]

    def tensors(self, seed: int | None = None, *, outliers: bool = False) -> dict[str, torch.Tensor]:
        """A tensor for each name in the way's graph; the same for the same seed."""
        generator = torch.Generator().manual_seed(self.seed if seed is None else seed)
        made = {}
        for name in self.way.tensors:
            capture = self.pattern.captures[name]
            for element in self.way.elements(name):
                shape = self.shapes.get(name, self.sizing.shape(name, capture))
                parameter = is_param(capture) and name not in self.as_inputs
                tensor = _random(shape, self.dtype_of(name), generator, parameter=parameter, outliers=outliers)
                tensor = tensor.abs() if self.positive else tensor
                if self.strided and not parameter and tensor.dim() > 1:
                    tensor = tensor.transpose(0, -1).contiguous().transpose(0, -1)
                if parameter:
                    tensor = nn.Parameter(tensor, requires_grad=tensor.is_floating_point() or tensor.is_complex())
                made[element] = tensor
        return made

    @property
    def values(self) -> dict[str, Any]:
        """The captures by name, as the reference takes them."""
        return self.way.values(self.tensors(), self.sizing.scalars)

    def module(self, tensors: Mapping[str, torch.Tensor]) -> fx.GraphModule:
        """The reference as a model whose parameters are the pattern's."""
        graph = self.way.trace(self.sizing.scalars)
        inputs = [n for name in self.as_inputs for n in self.way.elements(name)]
        first = next(iter(graph.nodes))
        for node in [n for n in graph.nodes if n.op == "get_attr" and n.target in inputs]:
            with graph.inserting_before(first):
                node.replace_all_uses_with(graph.placeholder(str(node.target)))
            graph.erase_node(node)
        root = nn.Module()
        for node in graph.find_nodes(op="get_attr"):
            name = str(node.target)
            if name not in dict(root.named_parameters()):
                root.register_parameter(name, tensors[name])  # type: ignore[arg-type]  # parameters, as drawn
        return fx.GraphModule(root, graph)

    def capture(self, *, grad: bool = False) -> Captured:
        """The graph of this example at torch level.

        Raises:
            CheckError: Dynamo makes no graph of the reference, or several.
        """
        tensors = self.tensors()
        module = self.module(tensors)
        inputs = [tensors[str(n.target)] for n in module.graph.find_nodes(op="placeholder")]
        if self.symbolic:
            self._fix_sizes(tensors)
        if grad:
            inputs = [i.requires_grad_() if i.is_floating_point() else i for i in inputs]
        seen: list[tuple[fx.GraphModule, tuple[Any, ...]]] = []

        def look(gm: fx.GraphModule, live: Sequence[Any]) -> Any:
            seen.append((gm, tuple(live)))
            return gm.forward

        try:
            with torch.set_grad_enabled(grad), compat.without_recompile_limits():
                compat.isolated_compile(module, look, fullgraph=True, dynamic=self.symbolic)(*inputs)
        except Exception as error:
            what = first_line(error)
            raise CheckError(f"Dynamo cannot capture the reference as {self}: {what}") from error
        finally:
            compat.forget_code(type(module).forward.__code__)
        if len(seen) != 1:
            raise CheckError(f"Dynamo captured {len(seen)} graphs of the reference as {self}, not one.")
        gm, live = seen[0]
        known = {id(tensor): name for name, tensor in tensors.items()}
        return Captured(gm, live, tuple(known.get(id(a)) if isinstance(a, torch.Tensor) else None for a in live))

    def _fix_sizes(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep sizes of inputs static that parameters decide, as they are in models, and those that are relations.

        A model that halves a size of no certain parity may mean unequal halves.
        """
        captures: dict[str, Any] = dict(self.pattern.captures)
        inputs = [n for n in self.way.tensors if not is_param(captures[n]) or n in self.as_inputs]
        fixed = {d for n in self.way.tensors if n not in inputs for size in captures[n].dims for d in dims_in(size)}
        for name in inputs:
            for place, size in enumerate(reversed(captures[name].dims), start=1):
                if size is not ... and (isinstance(size, DimExpr) or fixed.issuperset(dims_in(size))):
                    for element in self.way.elements(name):
                        compat.mark_static(tensors[element], tensors[element].dim() - place)

    def draw(self) -> Captured:
        """The same graph without Dynamo, which takes a tenth of a second: with static sizes, dtypes written out."""
        tensors = self.tensors()
        module = self.module(tensors)
        graph = module.graph
        mode = compat.FakeTensorMode()
        first = next(iter(graph.nodes))
        for node in graph.find_nodes(op="get_attr"):
            with graph.inserting_before(first):
                node.replace_all_uses_with(graph.placeholder(f"parameter_{node.target}"))
            graph.erase_node(node)
        output = graph.output_node()
        if not isinstance(output.args[0], tuple):
            output.args = ((output.args[0],),)
        names = [str(n.target).removeprefix("parameter_") for n in graph.find_nodes(op="placeholder")]
        live = tuple(tensors[name] for name in names)
        pending = iter(live)
        with mode, torch.no_grad():
            for node in list(graph.nodes):
                if node.op == "placeholder":
                    node.meta["example_value"] = mode.from_tensor(next(pending))
                elif node.op != "output":
                    value = call(node, lambda n: n.meta["example_value"])
                    if isinstance(value, torch.dtype | torch.device | torch.Size | int):
                        plain = tuple(value) if isinstance(value, torch.Size) else value
                        _inline(node, plain)
                    else:
                        node.meta["example_value"] = value
        return Captured(fx.GraphModule(nn.Module(), graph), live, tuple(names))

    def __str__(self) -> str:
        words = [str(self.way), str(self.dtype).removeprefix("torch."), "symbolic" if self.symbolic else "static"]
        words += [f"{name} {str(dtype).removeprefix('torch.')}" for name, dtype in self.dtypes.items()]
        return ", ".join(words)


def examples(
    pattern: Pattern,
    *,
    seed: int = 0,
    dtypes: Sequence[torch.dtype] = DTYPES,
    symbolic: Sequence[bool] = (False, True),
) -> Iterator[Example]:
    """An example of every way of a pattern, in every dtype that it allows, with static and with symbolic sizes.

    Raises:
        CheckError: no sizes exist with which the reference runs.
    """
    for way in ways(pattern):
        for dtype in allowed_dtypes(way, dtypes):
            static = example(way, dtype, seed=seed)
            for dynamic in symbolic:
                yield replace(static, symbolic=dynamic)


def example(way: Way, dtype: torch.dtype, *, sizing: Sizing | None = None, seed: int = 0) -> Example:
    """The example of one way, with values for which the reference is finite where there are any."""
    made = Example(way, dtype, sizing or size_for(way), seed=seed)
    try:
        results = way.run(made.tensors(), made.sizing.scalars)
    except Exception as error:
        what = first_line(error)
        raise CheckError(f"the reference cannot run as {made}: {what}") from error
    finite = all(bool(t.isfinite().all()) for t in tensors_in(results))
    return made if finite else replace(made, positive=True)


def allowed_dtypes(way: Way, dtypes: Sequence[torch.dtype] = DTYPES) -> list[torch.dtype]:
    """Those dtypes that at least one capture can have; where none can, the first, which then no capture has."""
    captures: list[Any] = [way.pattern.captures[name] for name in way.tensors]
    found = [d for d in dtypes if any(not c.dtypes or d in c.dtypes for c in captures)]
    return found or list(dtypes[:1])


def _inline(node: fx.Node, constant: Any) -> None:
    """Put a constant in place of a node, as Dynamo does with dtypes and static sizes."""
    for user in list(node.users):
        user.args = fx.map_arg(user.args, lambda n: constant if n is node else n)
        user.kwargs = fx.map_arg(user.kwargs, lambda n: constant if n is node else n)
    node.graph.erase_node(node)


def _random(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator, *, parameter: bool, outliers: bool
) -> torch.Tensor:
    if not (dtype.is_floating_point or dtype.is_complex):
        return torch.randint(0, 2, tuple(shape), generator=generator).to(dtype)
    made = torch.randn(tuple(shape), generator=generator)
    if parameter and len(shape) >= 2:
        made = made / max(shape[-1], 1) ** 0.5
    elif outliers and not parameter and shape and shape[-1] >= 3:
        made[..., :: shape[-1] // 3] *= OUTLIER
    return made.to(dtype)
