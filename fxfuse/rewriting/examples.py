"""The example value of a node: a fake tensor, a symbolic size or a number, under the key that the graph itself uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx

from fxfuse.compat import FakeTensor

KEYS = ("example_value", "val")


def key_of(graph: fx.Graph) -> str:
    """Where this graph keeps example values: Dynamo under ``example_value``, all others under ``val``."""
    return next((key for node in graph.nodes for key in KEYS if key in node.meta), KEYS[0])


def example_of(node: fx.Node) -> Any:
    return node.meta.get("example_value", node.meta.get("val"))


def tensor_of(node: fx.Node) -> torch.Tensor | None:
    value = example_of(node)
    return value if isinstance(value, torch.Tensor) else None


def mode_of(values: Iterable[Any]) -> Any:
    """The fake mode of the first fake tensor, as a context; a context that does nothing where there is none."""
    for value in values:
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return contextlib.nullcontext()


def flat(values: Any) -> list[Any]:
    """The leaves of nested tuples, lists and mappings, in order."""
    if isinstance(values, tuple | list):
        return [v for item in values for v in flat(item)]
    if isinstance(values, Mapping):
        return [v for item in values.values() for v in flat(item)]
    return [values]
