"""Which code a kernel runs, as a hash: a measurement says nothing about a kernel that was changed since.

Followed are the functions and classes of the same package that the kernel's code names, and, as whole files, the
modules that it imports while it runs, with what these import from their own folder: Triton kernels are imported so.
"""

from __future__ import annotations

import ast
import dis
import functools
import hashlib
import importlib.util
import inspect
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

from fxfuse.fingerprint import fingerprint
from fxfuse.kernels.lazy import Lazy
from fxfuse.kernels.registry import Kernel


@functools.lru_cache(maxsize=1024)
def source_of(kernel: Kernel) -> str:
    """The hash of the kernel's code and of what it derives."""
    files: dict[str, None] = {}
    texts: dict[str, None] = {}
    function: Any = kernel.function
    if isinstance(function, Lazy):
        _add_file(function.module, files)
    else:
        _add_code(getattr(function, "_init_fn", function), files, texts)
    derived = tuple((name, transform.describe()) for name, transform in kernel.derive)
    digest = hashlib.sha256(repr((sorted(texts), derived)).encode())
    for path in sorted(files, key=lambda p: (os.path.basename(p), p)):
        digest.update(os.path.basename(path).encode())
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()[:16]


def _add_code(value: Any, files: dict[str, None], texts: dict[str, None]) -> None:
    """The text of a function or class, and of what it names in its own package."""
    value = inspect.unwrap(getattr(value, "func", value))
    if isinstance(value, types.MethodType):
        value = value.__func__
    if not isinstance(value, types.FunctionType | type):
        texts[fingerprint(value)] = None  # an object that can be called, with what it holds
        value = type(value)
    try:
        text = inspect.getsource(value)
    except (OSError, TypeError):  # built in, or made without a file
        text = value.__code__.co_code.hex() if isinstance(value, types.FunctionType) else value.__qualname__
    if text in texts:
        return
    texts[text] = None
    if not isinstance(value, types.FunctionType):
        return
    package = value.__module__.partition(".")[0]
    for code in _codes(value.__code__):
        for name in code.co_names:
            named = value.__globals__.get(name)
            if isinstance(named, types.FunctionType | type) and named.__module__.partition(".")[0] == package:
                _add_code(named, files, texts)
            elif isinstance(named, int | float | str | tuple):
                texts[f"{name}={named!r}"] = None
        for module in _imported(code):
            if module.partition(".")[0] == package:
                _add_file(module, files)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _imported(code: types.CodeType) -> list[str]:
    return [str(i.argval) for i in dis.get_instructions(code) if i.opname == "IMPORT_NAME"]


def _add_file(module: str, files: dict[str, None]) -> None:
    """The file of a module, and those that it imports from its own folder."""
    path = _path_of(module)
    if path is None or path in files:
        return
    files[path] = None
    folder = module.rpartition(".")[0]
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(filter(None, [*module.split(".")[: -node.level], base]))
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            if folder and name.startswith(folder + "."):
                _add_file(name, files)


def _path_of(module: str) -> str | None:
    """The source file of a module, without importing it where its package is there already."""
    loaded = sys.modules.get(module)
    path = getattr(loaded, "__file__", None)
    if path is None:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError, AttributeError):
            return None
        path = spec.origin if spec is not None else None
    return path if path is not None and path.endswith(".py") and os.path.isfile(path) else None
