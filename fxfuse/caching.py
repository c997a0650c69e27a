"""The tag that fxfuse adds to torch's compile-cache keys.

torch's caches see the graph that fxfuse hands on, but not the bodies of the ops in it: after a changed kernel a new
process would get the old code. The tag is a hash of every source file that such a body can come from, of the
functions themselves, which need not come from a file, and may hold values that no file shows, and of the measurements
that kernels are chosen by.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

import fxfuse
from fxfuse import library, results
from fxfuse.authoring import Pattern, Region
from fxfuse.fingerprint import fingerprint
from fxfuse.kernels import Kernel, Lazy, kernels_for


def tag(patterns: Iterable[Pattern], *more: Any) -> str:
    """A hash over fxfuse itself, these patterns, their packs, kernels and measurements, and ``more``."""
    patterns = list(patterns)
    digest = hashlib.sha256(f"{fxfuse.__version__} {torch.__version__}".encode())
    for root in sorted(_roots(patterns)):
        digest.update(_hash_tree(root).encode())
    for pattern in patterns:
        digest.update(fingerprint(_pattern(pattern)).encode())
    digest.update(results.current().digest({library.qualified(pattern) for pattern in patterns}).encode())
    digest.update(fingerprint(more).encode())
    return f"fxfuse-{digest.hexdigest()[:24]}"


def _roots(patterns: Iterable[Pattern]) -> Iterator[str]:
    yield os.path.dirname(__file__)
    for pattern in patterns:
        yield _root_of(pattern.function)
        yield from (_root_of(kernel.function) for kernel in kernels_for(pattern.name).values())


def _pattern(pattern: Pattern) -> tuple[Any, ...]:
    kernels = sorted(kernels_for(pattern).values(), key=lambda k: k.name)
    written = pattern.globs if isinstance(pattern, Region) else (repr(pattern.captures), pattern.function)
    own = (pattern.name, pattern.priority, written, tuple(pattern.constraints))
    return (*own, tuple(map(_kernel, kernels)))


def _kernel(kernel: Kernel) -> tuple[Any, ...]:
    derived = tuple((name, transform.describe(), type(transform)) for name, transform in kernel.derive)
    return (kernel.name, kernel.function, kernel.requires, derived, kernel.backward, kernel.default, kernel.parameters)


def _root_of(function: Callable[..., Any]) -> str:
    """The folder of the package that a function is defined in, or its file where it is in none."""
    if isinstance(function, Lazy):
        return _root_of_module(function.module)
    inner: Any = inspect.unwrap(getattr(function, "_init_fn", getattr(function, "func", function)))
    if not inspect.isroutine(inner):
        inner = type(inner)
    try:
        file = inspect.getsourcefile(inner) or ""
    except TypeError:  # built in, or made at run time
        file = ""
    package = sys.modules.get(str(inner.__module__).partition(".")[0])
    locations = list(getattr(package, "__path__", ()))
    return next((p for p in locations if os.path.abspath(file).startswith(os.path.abspath(p))), file)


def _root_of_module(name: str) -> str:
    """The same of a function that is not imported yet, and is not for this."""
    try:
        spec = importlib.util.find_spec(name.partition(".")[0])
    except (ImportError, ValueError):
        return ""
    if spec is None:
        return ""
    return next(iter(spec.submodule_search_locations or ()), spec.origin or "")


@functools.cache
def _hash_tree(root: str) -> str:
    digest = hashlib.sha256()
    if not os.path.exists(root):  # no source at hand: the functions' own bytes are all that there is
        return ""
    files = [root] if os.path.isfile(root) else sorted(_sources(root))
    for file in files:
        digest.update(os.path.relpath(file, root).encode())
        with open(file, "rb") as source:
            digest.update(source.read())
    return digest.hexdigest()


def _sources(root: str) -> Iterable[str]:
    for folder, _, names in os.walk(root):
        for name in names:
            if name.endswith(".py"):
                yield os.path.join(folder, name)
