"""What a function does, as bytes that are equal in every process: for cache keys.

Bytecode, constants, defaults, closures, and the globals that the code names, followed through functions and classes of
anyone but torch, the standard library and fxfuse, whose versions or files the key has. Line numbers, addresses and the
order of sets do not count.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

_PLAIN = (int, float, complex, str, bytes, bool, type(None), types.EllipsisType, torch.dtype, torch.device)
_FOREIGN = frozenset({"fxfuse", "torch", "triton", "numpy", "sympy", "builtins", *sys.stdlib_module_names})


def fingerprint(value: Any) -> str:
    """Text that differs where two values would make a kernel, pattern or option behave differently."""
    return "\n".join(_parts(value, set()))


def _parts(value: Any, seen: set[int]) -> Iterator[str]:
    if isinstance(value, _PLAIN):
        yield f"{type(value).__name__}:{value!r}"
    elif isinstance(value, types.CodeType):
        yield from _code(value, seen)
    elif isinstance(value, tuple | list):
        yield f"{type(value).__name__}[{len(value)}]"
        for item in value:
            yield from _parts(item, seen)
    elif isinstance(value, set | frozenset):
        yield from sorted("\n".join(_parts(item, set(seen))) for item in value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield f"key:{key}"
            yield from _parts(item, seen)
    elif isinstance(value, types.ModuleType):
        yield f"module:{value.__name__} {getattr(value, '__version__', '')}"
    elif isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
        yield f"tensor:{value.dtype}{tuple(value.shape)}{data.numpy().tobytes().hex()}"
    elif id(value) not in seen:
        seen.add(id(value))
        yield from _object(value, seen)


def _object(value: Any, seen: set[int]) -> Iterator[str]:
    if isinstance(value, functools.partial):
        yield from _parts((value.func, value.args, dict(value.keywords)), seen)
    elif isinstance(value, types.MethodType):
        yield from _parts((value.__func__, value.__self__), seen)
    elif isinstance(value, types.FunctionType):
        yield from _function(value, seen)
    elif isinstance(value, type):
        yield f"class:{value.__module__}.{value.__qualname__}"
        if not _is_foreign(value):
            yield from _parts(_members(value), seen)
    elif hasattr(value, "_init_fn"):  # torch.library's custom op: its body, fake and backward formulas
        yield f"op:{getattr(value, '_qualname', '')}"
        yield from _parts([v for _, v in sorted(vars(value).items()) if isinstance(v, types.FunctionType)], seen)
    elif dataclasses.is_dataclass(value):
        yield f"class:{type(value).__qualname__}"
        yield from _parts({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, seen)
        yield from _parts(type(value), seen)
    else:
        yield f"object:{type(value).__module__}.{type(value).__qualname__}:{getattr(value, '__name__', '')}"
        if not _is_foreign(type(value)):
            yield from _parts(type(value), seen)
            yield from _parts(dict(sorted(getattr(value, "__dict__", {}).items())), seen)


def _function(function: types.FunctionType, seen: set[int]) -> Iterator[str]:
    yield f"function:{function.__module__}.{function.__qualname__}"
    if _is_foreign(function):
        return
    yield from _code(function.__code__, seen)
    yield from _parts((function.__defaults__, function.__kwdefaults__), seen)
    for cell in function.__closure__ or ():
        try:
            yield from _parts(cell.cell_contents, seen)
        except ValueError:  # a name that is not bound yet
            yield "cell:empty"
    names = sorted(_names(function.__code__))
    named = {name: function.__globals__[name] for name in names if name in function.__globals__}
    modules = [m for m in named.values() if isinstance(m, types.ModuleType) and not _is_foreign(m)]
    yield from _parts((named, [getattr(m, name) for m in modules for name in names if hasattr(m, name)]), seen)


def _code(code: types.CodeType, seen: set[int]) -> Iterator[str]:
    yield f"code:{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars} {code.co_flags}"
    yield from _parts(code.co_consts, seen)


def _names(code: types.CodeType) -> Iterable[str]:
    inner = (name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names(const))
    return {*code.co_names, *inner}


def _members(cls: type) -> dict[str, Any]:
    functions: dict[str, Any] = {}
    for name, member in sorted(vars(cls).items()):
        inner = getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
        if isinstance(inner, types.FunctionType):
            functions[name] = inner
        elif isinstance(member, _PLAIN) and not name.startswith("__"):
            functions[name] = member
    return functions


def _is_foreign(value: Any) -> bool:
    home = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return str(home).partition(".")[0] in _FOREIGN
