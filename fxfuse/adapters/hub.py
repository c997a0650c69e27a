"""Layers of the `kernels` package: loading one by name, where the package is installed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxfuse.errors import PatternError


def loaded(value: Any, local: bool = False) -> Any:
    """The layer class that a value of a KernelConfig names; a class is itself.

    Args:
        local: whether the part before the colon is a folder.

    Raises:
        PatternError: a value of another form, or the package that would load it is missing.
    """
    metadata: dict[str, Any] = {}
    while isinstance(value, Mapping):
        if len(value) != 1:
            raise PatternError(f"a layer is adapted for one device and mode at a time; given {value!r}.")
        (value,) = value.values()
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value, metadata = value[0], dict(value[1])
    if isinstance(value, type):
        return value
    if not isinstance(value, str) or not all(value.rpartition(":")):
        raise PatternError(f"a layer is a class, or a string such as 'org/repo:Name'; given {value!r}.")
    where, _, name = value.rpartition(":")
    if local:
        repository = imported("kernels", "LocalLayerRepository", "kernels", f"to load {value!r}")
        return repository(repo_path=Path(where), layer_name=name).load()
    repository = imported("kernels", "LayerRepository", "kernels", f"to load {value!r}")
    return repository(repo_id=where, layer_name=name, **(metadata or {"version": 1})).load()


def imported(module: str, name: str, distribution: str, purpose: str) -> Any:
    """An attribute of a module of a package that fxfuse does not need itself.

    Raises:
        PatternError: the package is not installed, fails to import, or lacks the attribute.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise PatternError(
            f"the package {distribution!r} is needed {purpose}, and gives no {module}.{name}: {error}. Install it, or "
            f"another version of it."
        ) from error
