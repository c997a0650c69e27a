"""Formulas that are one op in fp32, the mutants beside them, and that low precision keeps them apart."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from support import HIDDEN, INTER, Net, canonicals, capture, value_of, words
from torch import nn

from fxfuse.view import View

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
ROOT, HALF = math.sqrt(2.0), math.sqrt(0.5)
BELL = math.sqrt(2.0 / math.pi)


@dataclass
class Formula:
    """Spellings of one function in fp32, edits of the first that are other functions, and whether low precision too."""

    form: str
    spellings: tuple[str, ...]
    mutants: tuple[str, ...]
    low: bool = False


_NEW = "0.5 * x * (1.0 + torch.tanh({BELL} * (x + {C} * torch.pow(x, 3.0))))"
_FAST = "0.5 * x * (1.0 + torch.tanh(x * {BELL} * (1.0 + {C} * x * x)))"


def tanh_form(text: str, bell: float = BELL, constant: float = 0.044715) -> str:
    return text.replace("{BELL}", repr(bell)).replace("{C}", repr(constant))


def centred(scale: str, eps: str = " + 1e-5", mean: str = "x.mean(-1, keepdim=True)") -> str:
    return f"(lambda c: {scale.replace('EPS', eps)})(x - {mean})"


NORM = (
    "mul(sub(x, mean(x, dim=-1, keepdim=True)), "
    "rsqrt(add(mean(square(sub(x, mean(x, dim=-1, keepdim=True))), dim=-1, keepdim=True), other=1e-05)))"
)

FORMULAS = [
    Formula(
        "silu(x)",
        ("x * torch.sigmoid(x)", "x.sigmoid() * x", "torch.mul(x, F.sigmoid(x))", "x / (1 + torch.exp(-x))"),
        ("x * torch.sigmoid(1.702 * x)", "x * torch.sigmoid(y)", "x * torch.tanh(x)", "x / (2 + torch.exp(-x))"),
    ),
    Formula(
        "mish(x)",
        ("x * torch.tanh(F.softplus(x))", "F.softplus(x).tanh() * x"),
        ("x * torch.tanh(F.softplus(x, beta=2))", "y * torch.tanh(F.softplus(x))", "x * torch.sin(F.softplus(x))"),
    ),
    Formula(
        "gelu(x)",
        (
            f"x * 0.5 * (1.0 + torch.erf(x / {ROOT!r}))",
            f"0.5 * x * (1 + torch.erf(x * {HALF!r}))",
            f"x / 2 * (torch.erf(x / {ROOT!r}) + 1)",
            f"0.5 * (x * (1.0 + (x / {ROOT!r}).erf()))",
            "x * (0.5 * (1.0 + torch.erf(x * 0.70710678)))",
        ),
        (
            f"x * 0.5 * (1.0 + torch.erf(y / {ROOT!r}))",
            f"x * 0.4 * (1.0 + torch.erf(x / {ROOT!r}))",
            f"x * 0.5 * (1.1 + torch.erf(x / {ROOT!r}))",
            "x * 0.5 * (1.0 + torch.erf(x / 1.5))",
            "x * 0.5 * (1.0 + torch.erf(x * 0.7071))",
            f"x * 0.5 * (1.0 - torch.erf(x / {ROOT!r}))",
            f"y * 0.5 * (1.0 + torch.erf(x / {ROOT!r}))",
            f"x * 0.5 * (1.0 + torch.erf({ROOT!r} / x))",
            f"x * x * 0.5 * (1.0 + torch.erf(x / {ROOT!r}))",
        ),
    ),
    Formula(
        "gelu(x, approximate='tanh')",
        (
            tanh_form(_NEW),
            tanh_form(_FAST),
            tanh_form("x * 0.5 * (1.0 + torch.tanh({BELL} * x * (1 + {C} * x * x)))", 0.79788456),
            tanh_form("0.5 * x * (1.0 + torch.tanh({BELL} * (x + {C} * x * x * x)))"),
            tanh_form("0.5 * x * (torch.tanh({BELL} * ({C} * x**3 + x)) + 1.0)"),
            tanh_form("x * 0.5 * (1.0 + torch.tanh(x * {BELL} * (1.0 + {C} * x.square())))", 0.7978845608),
        ),
        (
            tanh_form(_NEW, constant=0.0449),
            tanh_form(_NEW, bell=0.7978),
            tanh_form(_NEW.replace("3.0", "2.0")),
            tanh_form(_NEW.replace("pow(x", "pow(y")),
            tanh_form(_NEW.replace("(x +", "(y +")),
            tanh_form(_NEW.replace("0.5 * x", "0.5 * y")),
            tanh_form(_NEW.replace("(x +", "(x -")),
            tanh_form(_NEW.replace("1.0 +", "1.0 -")),
            tanh_form(_FAST.replace("* x * x)", "* x)")),
            tanh_form(_FAST.replace("(1.0 + {C}", "(2.0 + {C}")),
            tanh_form(_NEW.replace("torch.tanh", "torch.erf")),
        ),
    ),
    Formula(
        "rsqrt(v)",
        ("1 / torch.sqrt(v)", "torch.sqrt(v).reciprocal()", "1.0 / v.sqrt()", "v ** -0.5", "v.pow(-0.5)"),
        ("2 / torch.sqrt(v)", "1 / v", "v ** -0.4", "torch.sqrt(v)"),
    ),
    Formula(
        NORM,
        (
            centred("c * torch.rsqrt(c.pow(2).mean(-1, keepdim=True)EPS)"),
            centred("c / torch.sqrt((c * c).mean(-1, keepdim=True)EPS)"),
            centred("c * torch.rsqrt(x.var(-1, unbiased=False, keepdim=True)EPS)"),
            centred("c / (x.var(-1, correction=0, keepdim=True)EPS).sqrt()"),
            centred("c / torch.sqrt(torch.var_mean(x, -1, correction=0, keepdim=True)[0]EPS)"),
            centred("c / torch.sqrt((x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)EPS)"),
            "F.layer_norm(x, (8,), eps=1e-5)",
            "torch.layer_norm(x, [8])",
            "nn.functional.layer_norm(x, normalized_shape=(8,), weight=None, bias=None)",
        ),
        (
            centred("c * torch.rsqrt(c.pow(2).mean(-1, keepdim=True)EPS)", eps=" + 1e-2"),
            centred("c * torch.rsqrt(x.var(-1, keepdim=True)EPS)"),
            centred("c / (x.std(-1, unbiased=False, keepdim=True)EPS)", eps=" + 1e-1"),
            centred("c * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)EPS)"),
            centred("c * torch.rsqrt(c.pow(2).mean(-1, keepdim=True)EPS)", mean="y.mean(-1, keepdim=True)"),
            centred("c * torch.rsqrt(c.pow(2).mean(-1, keepdim=True)EPS)", mean="x.mean(-2, keepdim=True)"),
            centred("c * torch.rsqrt(y.var(-1, unbiased=False, keepdim=True)EPS)"),
            "F.layer_norm(x, (3, 8))",
            "F.rms_norm(x, (8,), eps=1e-5)",
        ),
        low=True,
    ),
]
ROWS = [pytest.param(f, s, id=s) for f in FORMULAS for s in f.spellings]


@functools.cache
def _forms(dtype: torch.dtype) -> dict[str, str]:
    return canonicals([e for f in FORMULAS for e in (*f.spellings, *f.mutants)], dtype)


@pytest.mark.parametrize(("formula", "spelling"), ROWS)
def test_a_spelling_of_the_formula(formula: Formula, spelling: str) -> None:
    assert _forms(FP32)[spelling] == formula.form
    torch.testing.assert_close(value_of(spelling), value_of(formula.spellings[0]), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("formula", "mutant"), [pytest.param(f, m, id=m) for f in FORMULAS for m in f.mutants])
def test_a_mutant_is_another_function(formula: Formula, mutant: str) -> None:
    want, got = value_of(formula.spellings[0]), value_of(mutant)
    assert want.shape != got.shape or not torch.allclose(want, got, rtol=2e-6, atol=1e-6), f"{mutant} is no mutant"
    assert _forms(FP32)[mutant] != formula.form


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize(("formula", "spelling"), [row for row in ROWS if not row.values[0].low])
def test_low_precision_rounds_between_the_steps(formula: Formula, spelling: str, dtype: torch.dtype) -> None:
    assert _forms(dtype)[spelling] != formula.form


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize(
    ("function", "formula"),
    [
        (
            "F.layer_norm(x, (8,), w, w, 1e-5)",
            "(lambda f: (lambda c: (c * torch.rsqrt(c.pow(2).mean(-1, keepdim=True) + 1e-5) * w + w).to(x.dtype))"
            "(f - f.mean(-1, keepdim=True)))(x.float())",
        ),
        (
            "F.rms_norm(x, (8,), w, 1e-5)",
            "(lambda f: (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-5) * w).to(x.dtype))(x.float())",
        ),
        (
            "F.rms_norm(x, (8,), eps=1e-5)",
            "(lambda f: (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype))(x.float())",
        ),
        ("F.softmax(x, -1)", "F.softmax(x.float(), -1).to(x.dtype)"),
        ("F.gelu(x)", "F.gelu(x.float()).to(x.dtype)"),
        ("F.silu(x)", "F.silu(x.float()).to(x.dtype)"),
    ],
)
def test_a_function_that_computes_in_fp32_and_rounds_once(function: str, formula: str, dtype: torch.dtype) -> None:
    """The formula with its casts is the same function, bit for bit, and the formula without them is not."""
    kept = formula.replace(".to(x.dtype)", "")
    forms = canonicals([function, formula, kept], dtype)
    assert forms[function] == forms[formula] != forms[kept]
    assert torch.equal(value_of(function, dtype), value_of(formula, dtype))


BIASES = [
    (lambda m, x: F.linear(x, m.gate) + m.gate_bias, True),
    (lambda m, x: m.gate_bias + x @ m.gate.t(), True),
    (lambda m, x: torch.add(x @ m.gate.T, m.gate_bias), True),
    (lambda m, x: F.linear(x, m.gate) - m.gate_bias, False),
    (lambda m, x: F.linear(x, m.gate) + m.gate_bias[:1], False),
    (lambda m, x: F.linear(x, m.gate) + m.table, False),
    (lambda m, x: torch.add(F.linear(x, m.gate), m.gate_bias, alpha=2), False),
    (lambda m, x: F.linear(x, m.gate, m.gate_bias) + m.up_bias, False),
    (lambda m, x: (lambda h: h + m.gate_bias + h)(F.linear(x, m.gate)), False),
]


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(("body", "is_bias"), BIASES)
def test_a_row_of_parameters_added_to_a_projection_is_its_bias(
    body: Callable[..., torch.Tensor], is_bias: bool, dtype: torch.dtype
) -> None:
    """In low precision the product is rounded before the sum."""
    net = Net(lambda m, x: torch.atan(body(m, x)), dtype, table=nn.Parameter(torch.ones(3, INTER, dtype=dtype)))
    gm, examples = capture(net, torch.randn(3, HIDDEN).to(dtype))
    view = View(gm.graph, examples)
    (top,) = (n for n in gm.graph.nodes if n.target is torch.atan)
    one = words(view, view.value(top.args[0])) == "linear(args.0, gate, gate_bias)"
    assert one is (is_bias and dtype is FP32)
