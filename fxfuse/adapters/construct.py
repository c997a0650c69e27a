"""The arguments that a layout is constructed with, where it has the constructor of the module that it replaces.

transformers puts the layout's class in the module's place before the model is built, so the model itself passes them.
Here the model exists. What its module kept under the argument's name is taken as it is. Otherwise the module's class is
built once more on the meta device with numbers that nobody would choose, and where such a number turns up again, there
the argument is: as an attribute, or as a size of a parameter.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from fxfuse.errors import PatternError

_FIRST = 10_007  # a size that no attribute has by chance


def arguments(layout: type, module: nn.Module) -> dict[str, Any]:
    """What ``layout(...)`` takes, read from the module that it stands for.

    Raises:
        PatternError: an argument is not to be found; the caller has to say how the layout is built.
    """
    found: dict[str, Any] = {}
    landed: dict[str, Any] | None = None
    for name, parameter in _parameters(layout).items():
        if name in vars(module):
            found[name] = getattr(module, name)
            continue
        if landed is None:
            landed = _landed(module)
        if name in landed:
            found[name] = landed[name]
        elif parameter.default is parameter.empty or name in _parameters(type(module)):
            raise PatternError(
                f"{layout.__name__} takes {name!r}, and {type(module).__name__} does not tell what it was given; pass "
                f"init=, a function that builds the layout from the module it replaces."
            )
    return found


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    every = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]  # of this class
    return {p.name: p for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _landed(module: nn.Module) -> dict[str, Any]:
    """Argument of the module's class -> its value in this module, for those whose way can be followed."""
    markers: dict[str, Any] = {}
    for name, parameter in _parameters(type(module)).items():
        number = _FIRST + len(markers)
        if isinstance(parameter.default, float):
            markers[name] = 1.0 / number
        elif parameter.default is parameter.empty or type(parameter.default) is int:
            markers[name] = number
    try:
        with torch.device("meta"):
            probe = type(module)(**markers)
    except Exception:  # it wants something else than numbers: nothing can be said
        return {}
    found = {}
    for name, marker in markers.items():
        places: list[tuple[str, int | None]] = [
            (attribute, None) for attribute, value in vars(probe).items() if _same(value, marker)
        ]
        shapes = dict(probe.named_parameters(recurse=False))
        places += [(path, dim) for path, p in shapes.items() for dim, size in enumerate(p.shape) if size == marker]
        values = [getattr(module, a) if dim is None else getattr(module, a).shape[dim] for a, dim in places]
        if values and all(value == values[0] for value in values):
            found[name] = values[0]
    return found


def _same(value: Any, marker: Any) -> bool:
    return type(value) is type(marker) and value == marker
