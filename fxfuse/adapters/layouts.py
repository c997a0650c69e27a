"""Setting up what a layer is called with: its layout where it has one, else the modules that it replaces."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxfuse.adapters.construct import arguments
from fxfuse.adapters.conversion import Source, converted
from fxfuse.adapters.hollow import state, tensors_of
from fxfuse.errors import PatternError, first_line

Init = Callable[..., nn.Module]


@dataclass(frozen=True)
class LaidOut:
    """What a layer's forward sees as ``self``, and what each of its tensors is made of.

    Attributes:
        module: hollow.
        sources: path of a tensor in ``module`` -> full path of a parameter, or a transform of such.
    """

    module: nn.Module
    sources: Mapping[str, Source]

    def told(self, identity: bool) -> str:
        made = [f"{path} <- {source}" for path, source in self.sources.items()]
        return "\n".join([*state(self.module, identity), *made])


def lay_out(
    layer: type, layout: type | None, modules: Mapping[str, nn.Module], init: Init | None, takes_modules: bool
) -> LaidOut:
    """The layer's ``self`` for these modules.

    Args:
        layout: declares the parameters and a ``conversion_mapping``; None: the layer reads those of the only module.
        modules: full path -> hollow module, in the order in which the layout takes them.
        init: builds the layout from the modules.
        takes_modules: whether the layout's constructor takes the modules themselves, as for a fusion.

    Raises:
        PatternError: the layout cannot be built, or it does not fit the modules' parameters.
    """
    shapes = {f"{path}.{name}": t.shape for path, m in modules.items() for name, t in tensors_of(m).items()}
    first, module = next(iter(modules.items()))
    if layout is None and init is None:
        if len(modules) > 1:
            raise PatternError(
                f"{layer.__name__} replaces {len(modules)} modules, and no class {layer.__name__}Layout beside it says "
                f"which parameters it reads."
            )
        return LaidOut(module, {name: f"{first}.{name}" for name in tensors_of(module)})
    made = _built(layer, layout, list(modules.values()), init, takes_modules)
    targets = {f"{first}.{name}": t.shape for name, t in tensors_of(made).items()}
    mapping = getattr(layout or type(made), "conversion_mapping", ())
    found = converted(mapping, shapes, targets, type(made).__name__)
    return LaidOut(made, {target.removeprefix(f"{first}."): source for target, source in found.items()})


def _built(
    layer: type, layout: type | None, modules: Sequence[nn.Module], init: Init | None, takes_modules: bool
) -> nn.Module:
    name = layout.__name__ if layout is not None else layer.__name__
    make: Callable[[], Any]
    if init is not None:
        builder = init

        def make() -> Any:
            return builder(*modules)
    else:
        assert layout is not None
        given: Any = modules
        keywords: dict[str, Any] = {}
        if not takes_modules:
            given, keywords = (), arguments(layout, modules[0])

        def make() -> Any:
            return layout(*given, **keywords)

    try:
        with torch.device("meta"):
            made = make()
    except Exception as error:
        kinds = ", ".join(type(m).__name__ for m in modules)
        takes = f", which takes {inspect.signature(layout)}" if layout is not None else ""
        raise PatternError(f"{name}{takes} cannot be set up from {kinds}: {first_line(error)}.") from error
    if not isinstance(made, nn.Module):
        raise PatternError(f"init gives {type(made).__name__} for {name}; a layout is an nn.Module.")
    return made
