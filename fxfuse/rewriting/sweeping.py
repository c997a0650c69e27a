"""Taking away what a rewrite left without a reader, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from fxfuse.rewriting.placing import has_effect

_ASSERTIONS = {torch.ops.aten._assert_tensor_metadata.default}
"""Statements about the dtype and device of a tensor. Of one that is no longer computed, they say nothing."""


def drop_assertions(node: fx.Node) -> None:
    """Erase the statements about a node that is to go."""
    for reader in list(node.users):
        if reader.target in _ASSERTIONS and not reader.users:
            reader.graph.erase_node(reader)


def sweep(suspects: Iterable[fx.Node], gone: set[fx.Node]) -> None:
    """Erase those of ``suspects`` that nobody reads, and what only they read. Inputs and effects stay.

    Args:
        gone: the nodes erased so far; this adds to them.
    """
    pending = list(suspects)
    while pending:
        node = pending.pop()
        if node in gone or node.users or node.op not in {"call_function", "call_method"}:
            continue
        if has_effect(node) or node.meta.get("unbacked_bindings"):
            continue
        pending += node.all_input_nodes
        node.graph.erase_node(node)
        gone.add(node)
