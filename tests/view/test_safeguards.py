"""Each condition of the view's rules prevents what it says: with it lifted, another function has the form."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from support import HIDDEN, Net, canonical, canonicals, capture, words
from torch import nn

from fxfuse.safeguards import SAFEGUARDS, Safeguard, lifted
from fxfuse.view import View, rules
from fxfuse.view import view as view_module

FP32, BF16 = torch.float32, torch.bfloat16

# safeguard -> an expression, and the form that it then has and that another function has by right
EXPRESSIONS: dict[str, tuple[str, str, torch.dtype]] = {
    "same_dtype": ("x.half().float()", "x", FP32),
    "same_shape": ("x.view(6, 8)", "x", FP32),
    "inactive_dropout": ("F.dropout(x)", "x", FP32),
    "whole_slice": ("x[1:]", "x", FP32),
    "identity_order": ("C.transpose(-1, -2)", "C", FP32),
    "times_one": ("x * 2", "x", FP32),
    "first_number": ("torch.mul(0.3, x)", "mul(input=0.3, x)", BF16),
    "power_of_two": ("x / 10", "mul(x, other=0.1)", FP32),
    "constant": ("x * 0.5 * (1.0 + torch.erf(x * 0.7))", "gelu(x)", FP32),
    "same_operand": ("x * torch.sigmoid(y)", "silu(x)", FP32),
    "rounded_once": ("x * torch.sigmoid(x)", "silu(x)", BF16),
    "exponent": ("x ** 3", "square(x)", FP32),
    "count": ("x.sum(-1, keepdim=True) / 7", "mean(x, dim=-1, keepdim=True)", FP32),
    "matrix_weight": ("x @ C.transpose(-1, -2)", "linear(x, C)", FP32),
    "same_labels": ("torch.einsum('bsd,nd->sbn', x, W)", "linear(x, W)", FP32),
    "same_dimensions": ("C.T", "transpose(C, dim0=-2, dim1=-1)", FP32),
    "only_the_last": ("x.view(3, 2, 2, 4)", "split_last(x, size=4)", FP32),
    "repeated": (
        "C[:, :, None].expand(2, 8, 2, 8).reshape(4, 8, 8)", "repeat_interleave(C, repeats=2, dim=-2)", FP32
    ),
    "equal_parts": ("x.split([3, 5], -1)[1]", "part(x, dim=-1, index=1, of=2)", FP32),
    "same_border": ("x[..., 1:4]", "slice(x, dim=-1, start=1)", FP32),
    "one_dimension": ("F.rms_norm(x, (3, 8), eps=1e-5)",
                      "mul(x, rsqrt(add(mean(square(x), dim=-1, keepdim=True), other=1e-05)))", FP32),
    "bias_is_a_row": ("torch.addmm(x[0], y[0], M.t())",
                      "linear(select(y, dim=-3, index=0), M, select(x, dim=-3, index=0))", FP32),
}  # fmt: skip

GRAPHS: dict[str, tuple[Callable[..., Any], str, torch.dtype]] = {
    "widening_is_exact": (lambda m, x: m.weight.bfloat16() * x.bfloat16(), "mul(weight, cast(x, dtype=bf16))", FP32),
    "promotes_alone": (lambda m, x: m.weight.float() * m.one, "mul(weight, one)", BF16),
    "same_later": (lambda m, x: (lambda c: (x.mul_(2), c)[1])(x.clone()), "x", FP32),
    "reads_stay": (lambda m, x: (lambda r: (x.mul_(2), 1 / r)[1])(x.sqrt()), "rsqrt(x)", FP32),
    "unwritten_twin": (
        lambda m, x: (lambda a: torch.sub((x.mul_(2), a)[1], x.double()))(x.double()),
        "sub(cast(x, dtype=f64), cast(x, dtype=f64))",
        FP32,
    ),
    "uncorrected": (
        lambda m, x: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + 1e-5),
        "mul(sub(x, mean(x, dim=-1, keepdim=True)), rsqrt(add(mean(square(sub(x, mean(x, dim=-1, keepdim=True))), "
        "dim=-1, keepdim=True), other=1e-05)))",
        FP32,
    ),
}


BY_ITSELF = {"apart"}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_what_an_expression_would_be_taken_for(name: str) -> None:
    expression, wrong, dtype = EXPRESSIONS[name]
    assert canonical(expression, dtype) != wrong
    with lifted(name):
        assert canonicals([expression], dtype) == {expression: wrong}


@pytest.mark.parametrize("name", GRAPHS)
def test_what_a_graph_would_be_taken_for(name: str) -> None:
    body, wrong, dtype = GRAPHS[name]
    net = Net(lambda m, x: torch.atan(body(m, x)), dtype, one=nn.Parameter(torch.tensor(1.5)))
    gm, examples = capture(net, torch.rand(3, HIDDEN).to(dtype) + 1)
    (top,) = (n for n in gm.graph.nodes if n.target is torch.atan)
    source = next(n for n in top.all_input_nodes)

    def form(view: View) -> str:
        return words(view, view.value(source)).replace("args.0", "x")

    right = View(gm.graph, examples)
    if name == "unwritten_twin":
        a, b = source.all_input_nodes
        assert right.value(a) is not right.value(b)
        with lifted(name):
            wrong_view = View(gm.graph, examples)
            assert wrong_view.value(a) is wrong_view.value(b)
        return
    assert form(right) != wrong
    with lifted(name):
        assert form(View(gm.graph, examples)) == wrong


def test_two_casts_that_are_returned_would_be_taken_for_one() -> None:
    gm, examples = capture(Net(lambda m, x: (x.double(), x.to(torch.float64))), torch.rand(3, HIDDEN))
    (out,) = gm.graph.find_nodes(op="output")
    first, second = out.args[0]
    right = View(gm.graph, examples)
    assert right.value(first) is not right.value(second)
    with lifted(*BY_ITSELF):
        wrong = View(gm.graph, examples)
        assert wrong.value(first) is wrong.value(second)


def test_every_safeguard_of_the_torch_dialect_is_shown() -> None:
    modules = [import_module(f"{rules.__name__}.{m.name}") for m in pkgutil.iter_modules(rules.__path__)]
    declared = {
        made.name for module in (*modules, view_module) for made in vars(module).values() if isinstance(made, Safeguard)
    }
    assert declared <= SAFEGUARDS.keys()
    assert declared - EXPRESSIONS.keys() - GRAPHS.keys() - BY_ITSELF == set()
