"""Sets of one site's weights, rotated so that no cache holds them, and what the site computes in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxfuse.authoring import Pattern
from fxfuse.authoring.captures import is_param
from fxfuse.benchmarks.by_hand import EPS
from fxfuse.checking.examples import Example
from fxfuse.checking.running import tensors_in
from fxfuse.numerics.exact import Exact
from fxfuse.tuning.run import sizing_of, way_of


@dataclass(frozen=True)
class Subject:
    """The first form of a pattern at given sizes, as something that can be run in any arm.

    Attributes:
        tensors: one set of values by name: inputs and parameters.
        parameters: the names of the latter.
    """

    example: Example
    tensors: Mapping[str, Tensor]
    parameters: tuple[str, ...]

    @property
    def inputs(self) -> list[Tensor]:
        return [tensor for name, tensor in self.tensors.items() if name not in self.parameters]

    @property
    def weight_bytes(self) -> int:
        return sum(self.tensors[name].nbytes for name in self.parameters)

    def weights(self) -> dict[str, Tensor]:
        """The parameters' values, at addresses of their own."""
        return {name: self.tensors[name].clone() for name in self.parameters}

    def module_class(self) -> type[nn.Module]:
        """The reference as a class, whose instances need the parameters only: all of them run the same code."""
        made = self.example.module({name: nn.Parameter(t, requires_grad=False) for name, t in self._parameters()})
        return type("Reference", (nn.Module,), {"forward": type(made).forward})

    def module(self, kind: type[nn.Module], weights: Mapping[str, Tensor]) -> nn.Module:
        """An instance of :meth:`module_class` with these weights."""
        made = kind()
        for name, tensor in weights.items():
            made.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        return made

    def exact(self) -> tuple[Tensor, ...]:
        """What set 0 gives in float64.

        Raises:
            NotMeasured: float64 says nothing about this function.
        """
        names = frozenset(self.example.way.tensors)
        example = Example(self.example.way, self.example.dtype, self.example.sizing, as_inputs=names)
        graph = example.module({})
        holders = [str(n.target) for n in graph.graph.find_nodes(op="placeholder")]
        with torch.no_grad():
            return tuple(tensors_in(Exact(graph, graph.graph).run(*(self.tensors[name] for name in holders))))

    def _parameters(self) -> list[tuple[str, Tensor]]:
        return [(name, self.tensors[name]) for name in self.parameters]


def subject(pattern: Pattern, sizes: Mapping[str, int], rows: int, dtype: torch.dtype, device: torch.device) -> Subject:
    """Random values for a pattern's first form: activations of size one, weights that keep that size.

    Raises:
        OptionError: a dimension of the pattern has no size.
    """
    way = way_of(pattern, {}, frozenset())
    sizing = sizing_of(way, sizes, rows)
    scalars = {name: EPS if name == "eps" else value for name, value in sizing.scalars.items()}
    example = Example(way, dtype, type(sizing)(sizing.dims, sizing.lead, sizing.tails, scalars))
    generator = torch.Generator(device).manual_seed(0)
    tensors: dict[str, Tensor] = {}
    parameters: list[str] = []
    captures: Mapping[str, Any] = pattern.captures
    for name in way.tensors:
        shape = example.sizing.shape(name, captures[name])
        for element in way.elements(name):
            made = torch.randn(shape, generator=generator, device=device)
            if is_param(captures[name]):
                parameters.append(element)
                made = made * shape[-1] ** -0.5 if len(shape) > 1 else 1.0 + 0.1 * made
            tensors[element] = made.to(dtype)
    return Subject(example, tensors, tuple(parameters))
