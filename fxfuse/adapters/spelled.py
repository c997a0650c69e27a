"""A pattern's captures as the modules that they would have come from, for layers that ask modules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fxfuse.adapters.conversion import Source
from fxfuse.adapters.hollow import emptied
from fxfuse.adapters.layouts import Init, LaidOut, lay_out
from fxfuse.authoring import Pattern
from fxfuse.authoring.captures import Shaped
from fxfuse.authoring.sizes import Dim, evaluate
from fxfuse.errors import PatternError

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
"""What an alternative of a choice is, where a layer has it as an attribute that it calls."""

_PLAIN = (int, float, bool, str, tuple)


class Spelled:
    """The modules that a pattern's captures would have come from, for what is known of the captures."""

    def __init__(
        self,
        layer: type,
        layout: type | None,
        pattern: Pattern,
        attributes: dict[str, str],
        init: Init | None,
        prefix: str,
    ) -> None:
        self.layer = layer
        self.layout = layout
        self.pattern = pattern
        self.attributes = attributes
        self.init = init
        self.has_layout = layout is not None or init is not None
        self.prefix = prefix
        self.capture_of = {self._full(path): name for name, path in attributes.items()}
        self._made: dict[Any, nn.Module] = {}

    def _full(self, path: str) -> str:
        return f"{self.prefix}.{path}"

    def usual(self) -> dict[str, Any]:
        """A size for each dimension and a value for each scalar, so that a layout can be set up at all."""
        sizes: dict[Dim, int] = {dim: 16 + 12 * place for place, dim in enumerate(self.pattern.dims)}
        values: dict[str, Any] = {}
        for name in self.attributes:
            capture: Any = self.pattern.captures.get(name)
            if isinstance(capture, Shaped):
                values[name] = torch.empty([evaluate(d, sizes) for d in capture.dims if d is not ...], device="meta")
            elif capture is not None:
                values[name] = 1e-5 if capture.type is float else capture.type()
            else:
                values[name] = next(label for label in self.pattern.choices[name] if label in ACTIVATIONS)
        return values

    def __call__(self, given: Mapping[str, Any]) -> nn.Module:
        """The shell for these operands."""
        values = {name: given[name] for name in self.attributes}
        key = tuple((tuple(v.shape), v.dtype) if hasattr(v, "dtype") else v for v in values.values())
        if not all(isinstance(one, _PLAIN) for one in key):  # a symbolic number
            return emptied(self.laid_out(values).module)
        if key not in self._made:
            self._made[key] = emptied(self.laid_out(values).module)
        return self._made[key]

    def laid_out(self, values: Mapping[str, Any]) -> LaidOut:
        """The layer's ``self``, hollow, with captures as the sources of its tensors."""
        root = nn.Module()
        for name, path in sorted(self.attributes.items(), key=lambda item: item[1].count(".")):
            _put(root, path, values[name], self.attributes.values())
        modules: dict[str, nn.Module] = {self.prefix: root}
        if self.has_layout:
            modules = {self._full(n): root.get_submodule(n) for n in self._module_names()}
        laid = lay_out(self.layer, self.layout, modules, self.init, takes_modules=True)
        return LaidOut(laid.module, {path: self._captured(source) for path, source in laid.sources.items()})

    def _module_names(self) -> list[str]:
        flat = [path for path in self.attributes.values() if "." not in path]
        if flat:
            raise PatternError(
                f"{self.layer.__name__} has a layout, so its attributes are those of the modules that it takes, such "
                f"as 'norm.{flat[0]}'; given {flat[0]!r}."
            )
        return list(dict.fromkeys(path.partition(".")[0] for path in self.attributes.values()))

    def _captured(self, source: Source) -> Source:
        if isinstance(source, str):
            return self.capture_of[source]
        return replace(source, operands=tuple(map(self._captured, source.operands)))


def _put(root: nn.Module, path: str, value: Any, paths: Collection[str]) -> None:
    """Set an attribute of a submodule, which is made where it is not there. One with a matrix is an `nn.Linear`."""
    owner, _, name = path.rpartition(".")
    holder = root
    for segment in owner.split(".") if owner else ():
        if segment not in holder._modules:
            holder.add_module(segment, nn.Module())
        holder = holder.get_submodule(segment)
    if isinstance(value, str):
        setattr(holder, name, ACTIVATIONS[value])
        return
    if not hasattr(value, "shape"):
        setattr(holder, name, value)
        return
    weight = torch.empty(tuple(value.shape), dtype=value.dtype, device="meta")
    if name == "weight" and weight.ndim == 2 and owner:
        linear = nn.Linear(
            weight.shape[1], weight.shape[0], bias=f"{owner}.bias" in paths, dtype=weight.dtype, device="meta"
        )
        above, _, last = owner.rpartition(".")
        root.get_submodule(above).register_module(last, linear)
        return
    holder.register_parameter(name, nn.Parameter(weight, requires_grad=False))
