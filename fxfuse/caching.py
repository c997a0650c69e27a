"""The tag that fxfuse adds to torch's compile-cache keys.

torch's caches see the graph that fxfuse hands on, but not the bodies of the ops in it: after a changed kernel a new
process would get the old code. The tag is a hash of every source file that such a body can come from.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from fxfuse.authoring import Pattern
from fxfuse.kernels import kernels_for


def tag(patterns: Iterable[Pattern]) -> str:
    """A hash over fxfuse itself, the packs of these patterns and the modules of their kernels."""
    digest = hashlib.sha256()
    roots = {os.path.dirname(__file__)}
    for pattern in patterns:
        roots.add(_root_of(pattern.function))
        roots.update(_root_of(k.function) for k in kernels_for(pattern.name).values())
    for root in sorted(roots):
        digest.update(_hash_tree(root).encode())
    return f"fxfuse-{digest.hexdigest()[:24]}"


def _root_of(function: Callable[..., Any]) -> str:
    """The folder of the package that a function is defined in, or its file where it is in none."""
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


@functools.cache
def _hash_tree(root: str) -> str:
    digest = hashlib.sha256()
    if not os.path.exists(root):  # no source at hand: nothing that could be seen to change
        return root
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
