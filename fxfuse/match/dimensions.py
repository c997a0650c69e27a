"""Dimensions that a pattern counts from the first one, where the view counts from the last.

The view can do so in a graph, whose tensors have a rank, and not in a pattern, whose tensors may have any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxfuse.authoring.terms import OpTerm
from fxfuse.view import Value, View


def args_at(view: View, term: OpTerm, value: Value) -> Mapping[str, Any]:
    """The arguments of ``term`` as the view would write them where it is ``value``."""
    if not term.counts_from_first:
        return term.args
    args = dict(term.args)
    for name in OpTerm.DIMENSIONS & args.keys():
        args[name] = view.from_the_end(value, args[name])
    if term.op == "transpose":
        pair = args["dim0"], args["dim1"]
        if all(isinstance(dim, int) for dim in pair):
            args["dim0"], args["dim1"] = sorted(pair)
    return args
