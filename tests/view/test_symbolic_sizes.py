"""Sizes that differ from call to call: the same canonical forms where they follow, no guard, and no guess."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support import words
from torch import fx

from fxfuse.view import View


def symbolic_capture(function: object, *shape: int) -> tuple[fx.GraphModule, list[object]]:
    """The graph for any first two sizes; the others are fixed."""
    seen: list[tuple[fx.GraphModule, list[object]]] = []

    def look(gm: fx.GraphModule, examples: list[object]) -> object:
        seen.append((gm, examples))
        return gm.forward

    x = torch.randn(shape)
    for dim in range(min(2, len(shape) - 1)):
        torch._dynamo.mark_dynamic(x, dim)
    torch.compile(function, backend=look, fullgraph=True)(x)  # type: ignore[call-overload]  # any callable
    (only,) = seen
    return only


ROWS = {
    "heads of any rows": (lambda x: x.view(*x.shape[:-1], -1, 4), "split_last(x, size=4)"),
    "heads by size()": (lambda x: x.view(x.size(0), x.size(1), 2, 4), "split_last(x, size=4)"),
    "merged": (lambda x: x.transpose(0, 1).flatten(1), "merge_last(transpose(x, dim0=-3, dim1=-2))"),
    "merged with a size": (
        lambda x: x.transpose(1, 2).reshape(x.size(0), -1),
        "merge_last(transpose(x, dim0=-2, dim1=-1))",
    ),
    "others merged": (lambda x: x.flatten(0, 1), "rows(x)"),
    "there and back": (lambda x: x.view(-1, 8).view(x.shape), "x"),
    "whole": (lambda x: x.reshape(x.size(0), x.size(1), 8), "x"),
    "halves": (lambda x: x[..., 4:], "part(x, dim=-1, index=1, of=2)"),
    "first entries": (lambda x: x[:, :2], "slice(x, dim=-2, stop=2)"),
    "rows as one": (lambda x: x.view(-1, 8), "rows(x)"),
    "sequence halves": (lambda x: x.chunk(2, 1)[0], None),
    "transposed": (lambda x: x.transpose(0, 1), "transpose(x, dim0=-3, dim1=-2)"),
    "projected rows": (lambda x: F.linear(x.view(-1, 8), torch.ones(8, 8)).view(x.size(0), x.size(1), 8), "linear"),
}


@pytest.mark.parametrize("name", ROWS)
def test_forms_of_symbolic_sizes(name: str) -> None:
    function, form = ROWS[name]
    gm, examples = symbolic_capture(lambda x: torch.atan(function(x)), 3, 5, 8)
    shape_env = next(
        n.meta["example_value"].fake_mode.shape_env
        for n in gm.graph.nodes
        if isinstance(n.meta.get("example_value"), torch.Tensor)
    )
    before = len(shape_env.guards)
    view = View(gm.graph, examples)
    (top,) = (n for n in gm.graph.nodes if n.target is torch.atan)
    got = words(view, view.value(top.args[0]))
    assert len(shape_env.guards) == before
    if form == "linear":
        assert got.startswith("linear(x, ")
    elif form is not None:
        assert got == form
    else:
        assert "part" not in got
        assert "merge_last" not in got


def test_other_sizes_are_other_shapes() -> None:
    """Two sizes that are equal in the example, and not for every input."""
    gm, examples = symbolic_capture(lambda x: torch.atan(x.transpose(0, 1).reshape(x.size(0), x.size(1), 8)), 3, 5, 8)
    view = View(gm.graph, examples)
    (top,) = (n for n in gm.graph.nodes if n.target is torch.atan)
    assert words(view, view.value(top.args[0])) != "transpose(x, dim0=-3, dim1=-2)"
