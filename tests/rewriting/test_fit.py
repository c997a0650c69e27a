"""What a result may not change besides its value, and what a kernel may not do to what it is given."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxfuse
from fxfuse import Input
from tests.rewriting.several import graph_of, inputs, outcomes


@fxfuse.pattern("soft_one")
def soft_one(x=Input()):
    return torch.tanh(torch.sigmoid(x))


def kernel(name: str) -> Any:
    return fxfuse.kernel(soft_one, name=name)


@kernel("in_its_own_memory")
def in_its_own_memory(x):
    return x.sigmoid().tanh()


@kernel("writes_its_own")
def writes_its_own(x):
    return x.sigmoid().tanh_()


@kernel("writes_its_operand")
def writes_its_operand(x):
    return x.sigmoid_().tanh()


@kernel("writes_a_view_of_its_operand")
def writes_a_view_of_its_operand(x):
    x.view(-1).sigmoid_()
    return x.tanh()


@kernel("returns_its_operand")
def returns_its_operand(x):
    return x


@kernel("returns_a_view_of_its_operand")
def returns_a_view_of_its_operand(x):
    return x.view(x.shape)


@kernel("transposed")
def transposed(x):
    return x.t().contiguous().t().sigmoid().tanh()


@kernel("returns_none")
def returns_none(x):
    return None


@kernel("fails")
def fails(x):
    raise RuntimeError("no such thing")


def model(x):
    return torch.tanh(torch.sigmoid(x + 1)) * 2


def rewritten(gm: torch.fx.GraphModule, name: str) -> Any:
    options = {"patterns": [soft_one], "kernels": {"soft_one": name}}
    return fxfuse.rewrite(gm, options=options)


def graphs() -> dict[str, torch.fx.GraphModule]:
    """The same function in each dialect."""
    (x,) = inputs(count=1)
    program = torch.export.export(_Module(), (x,))
    return {
        "torch": graph_of(model, x),
        "export": program.module(),
        "core": program.run_decompositions().module(),
    }


class _Module(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return model(x)


@pytest.mark.parametrize("dialect", ["torch", "export", "core"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("in_its_own_memory", None),
        ("writes_its_own", None),
        ("writes_its_operand", "writes to"),
        ("writes_a_view_of_its_operand", "writes to"),
        ("returns_its_operand", "shares memory with"),
        ("returns_a_view_of_its_operand", "shares memory with"),
        ("transposed", "gives strides (1, 4); the site gives (6, 1)"),
        ("returns_none", "returned NoneType, not one tensor"),
        ("fails", "RuntimeError: no such thing"),
    ],
)
def test_what_does_not_fit_is_refused_in_every_dialect(dialect, name, says):
    gm = graphs()[dialect]
    before, (x,) = str(gm.graph), inputs(count=1)
    want, kept = model(x), x.clone()
    report = rewritten(gm, name)
    if says is None:
        assert outcomes(report) == [("rewritten", "")]
        if dialect != "torch":
            assert not any(n.target._schema.is_mutable for n in gm.graph.nodes if n.op == "call_function")
    else:
        assert outcomes(report) == [("kept", "REWRITE_ERROR")]
        assert says in report.sites[0].reason
        assert str(gm.graph) == before
    got = gm(x)
    torch.testing.assert_close(got[0] if isinstance(got, tuple) else got, want)
    torch.testing.assert_close(x, kept)


@pytest.mark.parametrize("dialect", ["torch", "export", "core"])
def test_new_nodes_carry_example_values_and_where_they_come_from(dialect):
    gm = graphs()[dialect]
    key = "example_value" if dialect == "torch" else "val"
    (site,) = rewritten(gm, "in_its_own_memory").sites
    new = [n for n in gm.graph.nodes if n.name in site.new_nodes]
    assert new
    for node in new:
        assert node.meta[key].shape == (4, 6)
        assert "model" in node.stack_trace or "torch.tanh" in node.stack_trace
