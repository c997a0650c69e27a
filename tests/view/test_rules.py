"""Each directed equality of the view beside its one-edit mutants, which must not be equated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support import HIDDEN, Net, canonical, canonicals, capture, value_of, words

from fxfuse.view import View

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


@dataclass
class Rule:
    """A spelling, its canonical form, and edits of the spelling that are other functions."""

    spelling: str
    form: str
    mutants: tuple[str, ...]
    dtype: torch.dtype = FP32


RULES = [
    Rule("x.pow(2)", "square(x)", ("x.pow(3)", "x.pow(-2)", "torch.pow(2, x)", "x.pow(y)", "x.pow(2.5)")),
    Rule("x * x", "square(x)", ("x * y", "x * -x", "x * (x + 1)", "x + x", "x * x.detach() * 2")),
    Rule("x.float() * x.contiguous()", "square(x)", ("x.double() * x", "x.half().float() * x")),
    Rule("v ** 0.5", "sqrt(v)", ("v ** 0.25", "v ** 1.5", "0.5 ** v")),
    Rule("v ** -0.5", "rsqrt(v)", ("v ** -1", "v ** -0.25", "v ** 0.5", "torch.pow(-0.5, v)")),
    Rule(
        "1 / torch.sqrt(v)",
        "rsqrt(v)",
        (
            "2 / torch.sqrt(v)",
            "torch.sqrt(v) / 1",
            "-1 / torch.sqrt(v)",
            "1 / v",
            "y / torch.sqrt(v)",
            "1 / torch.exp(v)",
            "torch.div(1, torch.sqrt(v), rounding_mode='floor')",
        ),
    ),
    Rule(
        "torch.sqrt(v).reciprocal()",
        "rsqrt(v)",
        ("v.reciprocal()", "torch.exp(v).reciprocal()", "v.reciprocal().reciprocal()"),
    ),
    Rule(
        "x / torch.sqrt(v)",
        "mul(x, rsqrt(v))",
        ("torch.sqrt(v) / x", "x / v", "x / torch.rsqrt(v)", "torch.div(x, torch.sqrt(v), rounding_mode='trunc')"),
    ),
    Rule(
        "x.sum(-1, keepdim=True) / 8",
        "mean(x, dim=-1, keepdim=True)",
        (
            "x.sum(-1, keepdim=True) / 7",
            "x.sum(-2, keepdim=True) / 8",
            "x.sum(-1) / 8 + 0",
            "x.sum() / 8",
            "x.sum((-1, -2), keepdim=True) / 8",
            "torch.div(x.sum(-1, keepdim=True), 8, rounding_mode='floor')",
            "8 / x.sum(-1, keepdim=True)",
            "x.sum(-1, keepdim=True, dtype=torch.float64) / 8",
            "x.sum(-1, keepdim=True) / v",
        ),
    ),
    Rule(
        "x * torch.sigmoid(x)",
        "silu(x)",
        (
            "x * torch.sigmoid(y)",
            "y * torch.sigmoid(x)",
            "x * torch.tanh(x)",
            "x * torch.sigmoid(1.702 * x)",
            "x + torch.sigmoid(x)",
            "torch.sigmoid(x) * torch.sigmoid(x)",
        ),
    ),
    Rule("x.sigmoid() * x", "silu(x)", ("x.sigmoid() * y", "x.sigmoid() * -x")),
    Rule(
        "x @ W.t()",
        "linear(x, W)",
        ("x @ M", "x @ M.t().t()", "x @ C", "x @ C.transpose(-1, -2)", "x @ y.transpose(1, 2)"),
    ),
    Rule(
        "torch.matmul(x, M.transpose(0, 1))",
        "linear(x, M)",
        (
            "torch.matmul(x, M.transpose(0, 0))",
            "torch.matmul(x, M.permute(0, 1))",
            "torch.matmul(x, C.transpose(1, 2))",
            "M.transpose(0, 1) @ x.transpose(1, 2)",
        ),
    ),
    Rule(
        "torch.einsum('bsd,nd->bsn', x, W)",
        "linear(x, W)",
        (
            "torch.einsum('bsd,nd->bns', x, W)",
            "torch.einsum('bsd,nd->sbn', x, W)",
            "torch.einsum('bsd,dn->bsn', x, M)",
            "torch.einsum('bsd,nd->bsn', x[..., :1], W)",  # which einsum broadcasts
            "torch.einsum('bsd,bnd->bsn', x, C)",
            "torch.einsum('bsd,nd->bn', x, W)",
            "torch.einsum('bsd,nd->bsnd', x, W)",
            "torch.einsum('bsd,ne->bsn', x, W)",
        ),
    ),
    Rule(
        "torch.einsum('...qd,...kd->...qk', x, y)",
        "matmul(x, transpose(y, dim0=-2, dim1=-1))",
        (
            "torch.einsum('...qd,...kd->...kq', x, y)",
            "torch.einsum('...qd,...kd->...qk', x, C)",
            "torch.einsum('...qd,...kd->...qk', x[:1], y)",
            "torch.einsum('...qd,...qd->...q', x, y)",
            "torch.einsum('bqd,akd->bqk', x, y)",
        ),
    ),
    Rule(
        "torch.addmm(w, y[0], M)",
        "linear(select(y, dim=-3, index=0), transpose(M, dim0=-2, dim1=-1), w)",
        (
            "torch.addmm(w, y[0], M.t())",
            "torch.addmm(w, y[0], M, alpha=2)",
            "torch.addmm(w, y[0], M, beta=2)",
            "torch.addmm(x[0], y[0], M)",
            "torch.addmm(w[:1], y[0], M)",
        ),
    ),
    Rule(
        "x / 8", "mul(x, other=0.125)", ("x / 7", "x * 8", "8 / x", "x // 8", "torch.div(x, 8, rounding_mode='floor')")
    ),
    Rule(
        "x.masked_fill(y > 0, -1e4)",
        "where(gt(y, other=0), input=-10000.0, x)",
        (
            "x.masked_fill(y < 0, -1e4)",
            "x.masked_fill(y > 0, -1e3)",
            "torch.where(y > 0, x, -1e4)",
            "y.masked_fill(y > 0, -1e4)",
        ),
    ),
    Rule("x * -1", "neg(x)", ("x * 1", "x * -2", "x - 1", "x ** -1")),
    Rule("1 - x", "sub(input=1, x)", ("x - 1", "1 + x", "torch.rsub(x, 1, alpha=2)", "2 - x")),
    Rule(
        "x.var(-1, unbiased=False)",
        "var(x, dim=-1, correction=0)",
        ("x.var(-1)", "x.var(-2, unbiased=False)", "x.std(-1, unbiased=False)", "x.var(unbiased=False)"),
    ),
    Rule(
        "torch.norm(x, dim=-1)",
        "vector_norm(x, dim=-1)",
        ("torch.norm(x)", "torch.norm(x, p=1, dim=-1)", "x.norm(dim=0)"),
    ),
    Rule("x @ W.permute(1, 0)", "linear(x, W)", ("x @ M.permute(0, 1)", "x @ C.permute(0, 2, 1)")),
    Rule("x @ W.T", "linear(x, W)", ("x @ M", "x @ C.mT")),
    Rule(
        "x.chunk(2, -1)[1]",
        "part(x, dim=-1, index=1, of=2)",
        (
            "x.chunk(2, -1)[0]",
            "x.chunk(4, -1)[1]",
            "x.chunk(3, -1)[1]",
            "x.chunk(2, 0)[1]",
            "x.split(3, -1)[1]",
            "x.split([3, 5], -1)[1]",
            "x.split([5, 3], -1)[1]",
        ),
    ),
    Rule(
        "x[..., 4:]",
        "part(x, dim=-1, index=1, of=2)",
        (
            "x[..., :4]",
            "x[..., 3:]",
            "x[..., 4:7]",
            "x[..., ::2]",
            "x[..., 2:6]",
            "x[:, 1:]",
            "x[1:]",
            "x[0, :, 4:]",
            "x[..., None, 4:]",
            "x[1:, :, 4:]",
            "x.flip(-1)[..., 4:]",
        ),
    ),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.spelling)
def test_rule_and_its_mutants(rule: Rule) -> None:
    forms = canonicals([rule.spelling, *rule.mutants], rule.dtype)
    got = forms.pop(rule.spelling)
    assert got == rule.form
    want = value_of(rule.spelling, rule.dtype)
    for mutant, form in forms.items():
        value = value_of(mutant, rule.dtype)
        same = value.dtype is want.dtype and value.shape == want.shape and torch.equal(value, want)
        assert not same, f"{mutant} is no mutant"
        assert form != got, mutant


WIDENED = [
    (lambda m, x: m.weight.float() * x.float(), "mul(weight, cast(x, dtype=f32))"),
    (lambda m, x: x.float() + m.weight.float(), "add(cast(x, dtype=f32), weight)"),
    # Not widened by promotion: the sum is of bf16 and a number, the product of two bf16, the operand no weight.
    (lambda m, x: 1.0 + m.weight.float(), "add(input=1.0, cast(weight, dtype=f32))"),
    (lambda m, x: (m.weight * x).float(), "cast(mul(weight, x), dtype=f32)"),
    (lambda m, x: x.float() * x.abs().float(), "mul(cast(x, dtype=f32), cast(abs(x), dtype=f32))"),
]


@pytest.mark.parametrize(("body", "form"), WIDENED, ids=[form for _, form in WIDENED])
def test_a_weight_loses_a_cast_that_promotion_implies(body: Callable[..., torch.Tensor], form: str) -> None:
    gm, examples = capture(Net(lambda m, x: torch.atan(body(m, x)), BF16), torch.randn(3, HIDDEN, dtype=BF16))
    view = View(gm.graph, examples)
    (top,) = (n for n in gm.graph.nodes if n.target is torch.atan)
    assert words(view, view.value(top.args[0])).replace("args.0", "x") == form


SEEN_THROUGH = [
    Rule("x.float()", "x", ("x.half()", "x.bfloat16()", "x.half().float()", "x.double()", "x.bfloat16().float()")),
    Rule(
        "x.float().to(torch.bfloat16)", "cast(cast(x, dtype=f32), dtype=bf16)", ("x.half().to(torch.bfloat16)",), BF16
    ),
    Rule("x.view(2, 3, 8)", "x", ("x.view(3, 2, 8)", "x.view(-1, 8)", "x.view(torch.int32)", "x.reshape(2, 8, 3)")),
    Rule("x.expand(2, 3, 8)", "x", ("x.expand(1, 2, 3, 8)", "v.expand(2, 3, 8)")),
    Rule("M.flatten().view(8, 8)", "M", ("M.flatten()", "M.flatten().view(4, 16)")),
    Rule(
        "F.dropout(x, 0.5, False)",
        "x",
        (
            "F.dropout(x, 0.5, True)",
            "F.dropout(x, 0.5)",
            "F.dropout(x, 1.0)",
            "torch.dropout(x, 0.5, True)",
            "nn.Dropout(0.5)(x)",
        ),
    ),
    Rule("x[:, :, :]", "x", ("x[:, 1:]", "x[0]", "x[None]", "x[:, None]", "x[:, ::2]")),
    Rule("x.contiguous()", "x", ("x.transpose(0, 1).contiguous()", "x.detach() + 0")),
]


@pytest.mark.parametrize("rule", SEEN_THROUGH, ids=lambda r: r.spelling)
def test_what_is_seen_through_and_what_is_not(rule: Rule) -> None:
    forms = canonicals([rule.spelling, *rule.mutants], rule.dtype)
    assert forms.pop(rule.spelling) == rule.form
    for mutant, form in forms.items():
        assert form not in {rule.form, "x"}, mutant


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize(
    ("spelling", "form"),
    [
        ("x * torch.sigmoid(x)", "silu(x)"),
        ("1 / torch.sqrt(v)", "rsqrt(v)"),
        ("torch.sqrt(v).reciprocal()", "rsqrt(v)"),
        ("x / torch.sqrt(v)", "mul(x, rsqrt(v))"),
        ("x.sum(-1, keepdim=True) / 8", "mean(x, dim=-1, keepdim=True)"),
    ],
)
def test_a_rule_that_would_round_elsewhere_is_for_fp32_only(spelling: str, form: str, dtype: torch.dtype) -> None:
    """In low precision the step between is rounded (and in fp16 a sum overflows), so it is another function."""
    assert canonical(spelling, dtype) != form


def test_fp16_sum_overflows_where_the_mean_does_not() -> None:
    """Why the row above is no pedantry."""
    x = torch.full((1, 4096), 40.0, dtype=FP16)
    assert torch.isinf(x.square().sum(-1) / 4096)
    assert not torch.isinf(x.square().mean(-1))


def _written_into(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    y = torch.mul(y, 2, out=y)
    return x * y


def _same_bits(x: torch.Tensor) -> torch.Tensor:
    t = x.view(torch.float16)
    return t.flatten().view(t.shape)


def _no_dimensions(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.sum().movedim(0, -1), x.sum().transpose(0, -1)


@pytest.mark.parametrize("function", [_written_into, _same_bits, _no_dimensions])
def test_calls_that_no_row_fits_are_read_without_harm(function: Any) -> None:
    count = function.__code__.co_argcount
    gm, examples = capture(function, *(torch.ones(2, 2) for _ in range(count)))
    assert View(gm.graph, examples).find("silu") == []
