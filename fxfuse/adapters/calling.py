"""A layer's forward as a kernel's function: called on a shell of a module that holds the site's operands."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fxfuse.adapters.hollow import filled
from fxfuse.adapters.opaque import opaque
from fxfuse.errors import PatternError

Shell = Callable[[Mapping[str, Any]], nn.Module]


@dataclass(frozen=True)
class LayerCall:
    """Calls ``layer.forward`` with operands of a site, by name.

    Attributes:
        layer: the class whose forward is called; it is never instantiated.
        inputs: the operands that forward takes, in order.
        tensors: path of a tensor in ``self`` -> the operand that it is.
        others: operands that only the shell is made from.
        told: what else decides what is computed, as text, for cache keys.
        shell: what ``self`` is, for these operands, without its tensors.
    """

    layer: type
    inputs: tuple[str, ...]
    tensors: tuple[tuple[str, str], ...]
    others: tuple[str, ...]
    told: str
    shell: Shell

    is_foreign: ClassVar[bool] = True

    @property
    def operands(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.inputs, *(operand for _, operand in self.tensors), *self.others]))

    @property
    def __signature__(self) -> inspect.Signature:
        return _signature(self.operands)

    def __call__(self, **given: Any) -> Any:
        module = filled(self.shell(given), {path: given[operand] for path, operand in self.tensors})
        forward: Any = self.layer.forward  # type: ignore[attr-defined]  # a layer has one, or it was refused
        return forward(module, *(given[name] for name in self.inputs))


@dataclass(frozen=True)
class OpaqueCall:
    """The same call as one op that nothing looks into."""

    call: LayerCall
    op: Callable[..., Any]

    is_foreign: ClassVar[bool] = True

    @property
    def __signature__(self) -> inspect.Signature:
        return _signature(self.call.operands)

    def __call__(self, **given: Any) -> Any:
        return self.op(*(given[name] for name in self.call.operands))


def hidden(call: LayerCall, kinds: Mapping[str, str], like: str | None, differentiable: bool) -> OpaqueCall:
    """The call behind an op.

    Args:
        kinds: operand -> its type in a schema, where that is not ``Tensor``.
        like: see :func:`fxfuse.adapters.opaque.opaque`.
    """
    schema = {name: kinds.get(name, "Tensor") for name in call.operands}
    if like is not None and like not in schema:
        raise PatternError(f"like={like!r} names no operand of {call.layer.__name__}; it has {', '.join(schema)}.")

    def run(*operands: Any) -> Any:
        return call(**dict(zip(schema, operands, strict=True)))

    key = (call.layer, call.inputs, call.tensors, call.others, call.told, like, differentiable)
    return OpaqueCall(call, opaque(call.layer.__name__, run, schema, key=key, like=like, differentiable=differentiable))


def _signature(names: tuple[str, ...]) -> inspect.Signature:
    return inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names])


def check_layer(layer: Any, inputs: int) -> None:
    """Raise PatternError where something is no layer class, or its forward takes another number of inputs."""
    forward = getattr(layer, "forward", None)
    if not isinstance(layer, type) or forward is None or forward is nn.Module.forward:
        raise PatternError(f"a layer is a class with a forward, such as the `kernels` package has; given {layer!r}.")
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p.name for p in plain if p.default is p.empty]
    several = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(needed) > inputs or (len(plain) < inputs and not several):
        raise PatternError(
            f"{layer.__name__}.forward takes {', '.join(p.name for p in plain) or 'nothing'}; it is called with "
            f"{inputs} input{'s' * (inputs != 1)}."
        )


def layout_of(layer: type) -> type | None:
    """The class that declares the layer's parameters: the layer's name and ``Layout``, in the same module."""
    home = sys.modules.get(layer.__module__)
    found = getattr(home, f"{layer.__name__}Layout", None)
    return found if isinstance(found, type) else None


def differentiability(layer: type, blind: bool, backward: bool | str) -> str | None:
    """What a kernel of this layer declares as its backward, for what the caller asked and the layer says."""
    if isinstance(backward, str):
        return backward
    return "autograd" if backward and not blind and getattr(layer, "has_backward", True) else None


def is_opaque(layer: type, asked: bool | None) -> bool:
    """Whether a layer runs as one op: as asked, else unless it says ``can_torch_compile``, as `kernels` has it."""
    return asked if asked is not None else not getattr(layer, "can_torch_compile", False)
