"""Modules without memory: what a layout is set up from, and the `self` that a layer's forward is called with.

A hollow module is a copy of a module's shell: its class, attributes and children are there, its tensors are on the meta
device, its hooks are gone. The module itself is only read.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fxfuse.errors import PatternError
from fxfuse.fingerprint import fingerprint

_SIMPLE = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_OWN_CALL = ("forward", "_compiled_call_impl", "_hf_hook", "_old_forward")
"""What compiles, kernel mappings and offloaders put on an instance to change how it is called."""


def hollow(module: nn.Module) -> nn.Module:
    """A copy of the module's shell, with parameters and buffers on the meta device.

    Raises:
        PatternError: a parameter is no plain tensor (quantised, distributed), so its shape says nothing.
    """
    return _copied(module, _on_meta, {})


def emptied(module: nn.Module) -> nn.Module:
    """A copy of the module's shell without any tensor; see :func:`filled`."""
    return _copied(module, lambda path, tensor: None, {})


def filled(shell: nn.Module, tensors: Mapping[str, Any]) -> nn.Module:
    """A copy of the shell with these under its tensors' paths; they may be anything that a forward can compute with."""
    made = _copied(shell, lambda path, tensor: tensor, {})
    for path, value in tensors.items():
        owner, _, name = path.rpartition(".")
        holder = made.get_submodule(owner)
        for held in (holder._parameters, holder._buffers):
            held.pop(name, None)
        vars(holder)[name] = value  # a parameter's slot takes parameters only
    return made


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's parameters and buffers by path, tied ones under each of their paths."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def state(module: nn.Module, identity: bool) -> Iterator[str]:
    """What decides how a module's forward computes, besides its tensors' values: one line for each thing.

    Args:
        identity: tell objects that are no plain values apart by identity, which is quick; else by what they hold and
            do, which is equal in every process.
    """
    for path, child in module.named_modules(remove_duplicate=False):
        yield f"{path}: {type(child).__module__}.{type(child).__qualname__}({child.extra_repr()})"
        for name, value in sorted(vars(child).items()):
            if not name.startswith("_") and not name.endswith("_hooks"):
                yield f"{path}.{name} = {_told(value, identity)}"


def _told(value: Any, identity: bool) -> str:
    if isinstance(value, _SIMPLE):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}[{', '.join(_told(v, identity) for v in value)}]"
    if isinstance(value, functools.partial):
        return f"partial{_told((value.func, value.args, *sorted(value.keywords.items())), identity)}"
    if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
        return f"method {value.__func__.__qualname__}"  # of a module, which is told by itself
    if isinstance(value, nn.Module):  # held in a list, say, and so none of the module's children
        return f"{type(value).__module__}.{value!r}" + (f" {id(value)}" if identity else "")
    if isinstance(value, torch.Tensor) and value.is_meta:
        return f"tensor {value.dtype} {tuple(value.shape)}"
    kind = value if callable(value) and hasattr(value, "__qualname__") else type(value)
    what = str(id(value)) if identity else hashlib.sha256(fingerprint(value).encode()).hexdigest()
    return f"{kind.__module__}.{kind.__qualname__} {what}"


Become = Callable[[str, torch.Tensor], torch.Tensor | None]


def _copied(module: nn.Module, become: Become, known: dict[int, nn.Module], path: str = "") -> nn.Module:
    if id(module) in known:
        return known[id(module)]
    made = known[id(module)] = type(module).__new__(type(module))
    attributes = dict(vars(module))
    for name in [n for n in attributes if n.endswith("_hooks")]:
        attributes[name] = type(attributes[name])()
    for name in _OWN_CALL:
        attributes.pop(name, None)
    vars(made).update(attributes)
    for kind in ("_parameters", "_buffers"):
        held = copy.copy(attributes[kind])
        for name, tensor in list(held.items()):
            if tensor is None:
                continue
            became = become(f"{path}{name}", tensor)
            if became is None:
                del held[name]
            else:
                held[name] = became
        vars(made)[kind] = held
    children = {n: c and _copied(c, become, known, f"{path}{n}.") for n, c in module._modules.items()}
    vars(made)["_modules"] = children
    return made


def _on_meta(path: str, tensor: torch.Tensor) -> torch.Tensor:
    if type(tensor) not in (nn.Parameter, nn.Buffer, torch.Tensor):
        raise PatternError(
            f"{path} is a {type(tensor).__name__}; a layer can be adapted to plain parameters only, whose shape is "
            f"that of what is computed with."
        )
    made = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made
