"""What decompositions spell out, each beside its one-edit mutants; and that low precision is equal bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from support import canonicals, value_of

from fxfuse.safeguards import lifted

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
LOW = [BF16, FP16]


@dataclass
class Decomposed:
    """A spelling, its canonical form, and edits of the spelling that are other functions."""

    spelling: str
    form: str
    mutants: tuple[str, ...]


WIDE_SILU = "(lambda f: f / (1 + torch.exp(-f)))(x.float())"
WIDE_SOFTMAX = "(lambda s: (lambda e: e / e.sum(-1, keepdim=True))(torch.exp(s - s.amax(-1, keepdim=True))))(x.float())"

IN_FP32 = [
    Decomposed(
        "x / (1 + torch.exp(-x))",
        "silu(x)",
        (
            "x / (2 + torch.exp(-x))",
            "x / (1 + torch.exp(x))",
            "x / (1 + torch.exp(-y))",
            "y / (1 + torch.exp(-x))",
            "x / (1 - torch.exp(-x))",
            "x * (1 + torch.exp(-x))",
            "x / torch.add(1, torch.exp(-x), alpha=2)",
            "torch.div(x, 1 + torch.exp(-x), rounding_mode='floor')",
            "x / (1 + torch.exp2(-x))",
        ),
    ),
    Decomposed(
        "(lambda e: e / e.sum(-1, keepdim=True))(torch.exp(x - x.amax(-1, keepdim=True)))",
        "softmax(x, dim=-1)",
        (
            "(lambda e: e / e.sum(-2, keepdim=True))(torch.exp(x - x.amax(-1, keepdim=True)))",
            "(lambda e: e / e.sum(-1, keepdim=True))(torch.exp(x - x.amax(-2, keepdim=True)))",
            "(lambda e: e / e.sum(-2, keepdim=True))(torch.exp(x - x.amin(-2, keepdim=True)))",
            "(lambda e: e / e.sum((-1, -2), keepdim=True))(torch.exp(x - x.amax((-1, -2), keepdim=True)))",
            "(lambda e: e / e.sum(-1, keepdim=True))(torch.exp(x - y.amax(-1, keepdim=True)))",
            "(lambda e: x / e.sum(-1, keepdim=True))(torch.exp(x - x.amax(-1, keepdim=True)))",
            "(lambda e: e / e.mean(-1, keepdim=True))(torch.exp(x - x.amax(-1, keepdim=True)))",
            "(lambda e: e / e.sum(-1, keepdim=True))(torch.exp(x))",
        ),
    ),
    Decomposed(
        "torch.bmm(x, M.t().expand(2, -1, -1))",
        "linear(x, M)",
        (
            "torch.bmm(x, M.expand(2, -1, -1))",
            "torch.bmm(x, C)",
            "torch.bmm(x, C.transpose(1, 2))",
            "torch.bmm(x, C[:1].transpose(1, 2).expand(2, -1, -1))",
        ),
    ),
    Decomposed(
        "torch.mm(x.reshape(6, 8), M).reshape(2, 3, 8)",
        "matmul(x, M)",
        (
            "torch.mm(x.reshape(6, 8), M).reshape(3, 2, 8)",
            "torch.mm(x.transpose(0, 1).reshape(6, 8), M).reshape(2, 3, 8)",
            "torch.mm(x.transpose(1, 2).reshape(6, 8), M).reshape(2, 3, 8)",
            "torch.mm(x.reshape(6, 8), M).t().reshape(2, 3, 8)",
        ),
    ),
    Decomposed(
        "torch.mm(x.reshape(6, 8), M.t()).reshape(2, 3, 8)",
        "linear(x, M)",
        (
            "torch.mm(x.reshape(6, 8), M).reshape(2, 3, 8)",
            "torch.mm(x.reshape(6, 8), M.t()).reshape(3, 2, 8)",
            "torch.mm(x.reshape(6, 8), M.t()).reshape(2, 3, 4, 2).transpose(2, 3).reshape(2, 3, 8)",
            "torch.mm(x.transpose(1, 2).reshape(6, 8), M.t()).reshape(2, 3, 8)",
        ),
    ),
]  # fmt: skip

IN_LOW_PRECISION = [
    Decomposed(
        f"{WIDE_SILU}.to(x.dtype)",
        "silu(x)",
        (
            WIDE_SILU,
            "x / (1 + torch.exp(-x))",
            "(x / (1 + torch.exp(-x.float()))).to(x.dtype)",
            "(lambda f: f / (1 + torch.exp(-f)).to(x.dtype))(x.float()).to(x.dtype)",
            "(lambda f: f / (2 + torch.exp(-f)))(x.float()).to(x.dtype)",
            f"{WIDE_SILU}.to(torch.float64)",
            f"{WIDE_SILU}.double().to(x.dtype)",
        ),
    ),
    Decomposed(
        "(lambda f: f * f.sigmoid())(x.float()).to(x.dtype)",
        "silu(x)",
        (
            "x * x.sigmoid()",
            "(x.float() * x.sigmoid()).to(x.dtype)",
            "x * x.float().sigmoid().to(x.dtype)",
            "(lambda f: f * f.sigmoid())(x.float())",
            "(lambda f: f * (1.702 * f).sigmoid())(x.float()).to(x.dtype)",
        ),
    ),
    Decomposed("F.silu(x.float()).to(x.dtype)", "silu(x)", ("F.silu(x.float())", "F.silu(x + y).to(x.dtype)")),
    Decomposed(
        "(lambda f: f * 0.5 * (torch.erf(f * 0.7071067811865476) + 1))(x.float()).to(x.dtype)",
        "gelu(x)",
        (
            "x * 0.5 * (torch.erf(x * 0.7071067811865476) + 1)",
            "(lambda f: f * 0.5 * (torch.erf(f * 0.7071067811865476) + 1))(x.float())",
            "(lambda f: f * 0.5 * (torch.erf(f * 0.7) + 1))(x.float()).to(x.dtype)",
            "(x * 0.5 * (torch.erf(x.float() * 0.7071067811865476) + 1)).to(x.dtype)",
        ),
    ),
    Decomposed(
        "F.gelu(x.float(), approximate='tanh').to(x.dtype)",
        "gelu(x, approximate='tanh')",
        ("F.gelu(x.float(), approximate='tanh')",),
    ),
    Decomposed(
        f"{WIDE_SOFTMAX}.to(x.dtype)",
        "{softmax}",
        (WIDE_SOFTMAX, "(lambda e: e / e.sum(-1, keepdim=True))(torch.exp(x - x.amax(-1, keepdim=True)))"),
    ),
    Decomposed("F.softmax(x, -1)", "{softmax}", ("F.softmax(x, -2)", "F.softmax(x.float(), -1)")),
    Decomposed("F.softmax(x, -1, dtype=torch.float32).to(x.dtype)", "{softmax}", ()),
]  # fmt: skip


def named(form: str, dtype: torch.dtype) -> str:
    short = {BF16: "bf16", FP16: "f16"}.get(dtype, "")
    return form.replace("{softmax}", f"cast(softmax(cast(x, dtype=f32), dim=-1), dtype={short})")


@pytest.mark.parametrize("case", IN_FP32, ids=lambda case: case.form)
def test_in_fp32(case: Decomposed) -> None:
    got = canonicals([case.spelling, *case.mutants])
    assert got.pop(case.spelling) == case.form
    assert case.form not in got.values()
    for mutant in case.mutants:
        assert not torch.equal(value_of(mutant), value_of(case.spelling)), mutant


@pytest.mark.parametrize("dtype", LOW, ids=["bf16", "fp16"])
@pytest.mark.parametrize("case", IN_LOW_PRECISION, ids=lambda case: case.spelling[:40])
def test_in_low_precision(case: Decomposed, dtype: torch.dtype) -> None:
    got = canonicals([case.spelling, *case.mutants], dtype)
    form = named(case.form, dtype)
    assert got.pop(case.spelling) == form
    assert form not in got.values()


def test_a_bias_that_is_added_after_rounding_is_no_bias() -> None:
    spelling = "F.linear(x, M) + M[0]"
    assert "add(linear(x, M)" in canonicals([spelling], BF16)[spelling]


# --- bit for bit ----------------------------------------------------------------------------------------------------


def every(dtype: torch.dtype) -> torch.Tensor:
    """All finite numbers of a 16-bit dtype whose halves are normal: some kernels flush what is not."""
    numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
    return numbers[numbers.isfinite() & (numbers.abs() > 8 * torch.finfo(dtype).tiny)]


def different(a: torch.Tensor, b: torch.Tensor) -> int:
    assert a.dtype == b.dtype
    return int((a != b).sum())


@dataclass
class Rounded:
    """Eager's op, what Inductor makes of it between casts, how many of 65536 numbers may differ, and a mutant."""

    op: Callable[[torch.Tensor], torch.Tensor]
    between_casts: Callable[[torch.Tensor], torch.Tensor]
    allowed: int
    mutant: Callable[[torch.Tensor], torch.Tensor]


ROUNDED = {
    "silu": Rounded(F.silu, lambda f: f / (1 + torch.exp(-f)), 0, lambda x: x / (1 + torch.exp(-x))),
    # The last place of fp32 decides where a number lies half-way between two of fp16.
    "silu by sigmoid": Rounded(F.silu, lambda f: f * f.sigmoid(), 1, lambda x: x * x.sigmoid()),
    "silu in fp32": Rounded(F.silu, F.silu, 0, lambda x: x * x.sigmoid()),
    # 1 + erf cancels, so here it is more than the last place; Inductor's own code has it so.
    "gelu": Rounded(
        F.gelu,
        lambda f: f * 0.5 * (torch.erf(f * 0.7071067811865476) + 1),
        420,
        lambda x: x * 0.5 * (torch.erf(x * 0.7071067811865476) + 1),
    ),
    "gelu in fp32": Rounded(F.gelu, F.gelu, 0, lambda x: x * 0.5 * (1 + torch.erf(x * 0.7071067811865476))),
    "gelu_tanh in fp32": Rounded(
        lambda x: F.gelu(x, approximate="tanh"),
        lambda f: F.gelu(f, approximate="tanh"),
        0,
        lambda x: x * 0.5 * (1 + torch.tanh((x + 0.044715 * x * x * x) * 0.7978845608028654)),
    ),
}


@pytest.mark.parametrize("dtype", LOW, ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ROUNDED)
def test_an_op_between_casts_is_eagers_op(name: str, dtype: torch.dtype) -> None:
    case, x = ROUNDED[name], every(dtype)
    eager = case.op(x)
    assert different(eager, case.between_casts(x.float()).to(dtype)) <= case.allowed
    assert different(eager, case.mutant(x)) > max(800, 2 * case.allowed)


@pytest.mark.parametrize("dtype", LOW, ids=["bf16", "fp16"])
def test_softmax_rounds_once(dtype: torch.dtype) -> None:
    scores = (torch.randn(256, 128) * 4).to(dtype)
    eager = F.softmax(scores, -1)
    assert different(eager, F.softmax(scores.float(), -1).to(dtype)) == 0
    powers = torch.exp(scores - scores.amax(-1, keepdim=True))
    assert different(eager, powers / powers.sum(-1, keepdim=True)) > 1000


# --- what each condition prevents -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mutant", "form", "dtype"),
    [
        ("one_plus", "x / (2 + torch.exp(-x))", "silu(x)", FP32),
        ("same_reduction", IN_FP32[1].mutants[0], "softmax(x, dim=-1)", FP32),
        ("batch_weight_transposed", "torch.bmm(x, M.expand(2, -1, -1))", "linear(x, M)", FP32),
        ("rows_kept", "torch.mm(x.reshape(6, 8), M).reshape(3, 2, 8)", "matmul(x, M)", FP32),
        ("same_dtype_back", "F.silu(x.float()).to(torch.float64)", "silu(x)", BF16),
        ("rounded_once", "x / (1 + torch.exp(-x))", "silu(x)", BF16),
    ],
)
def test_a_lifted_safeguard_equates_a_mutant(name: str, mutant: str, form: str, dtype: torch.dtype) -> None:
    assert canonicals([mutant], dtype)[mutant] != form
    with lifted(name):
        assert canonicals([mutant], dtype)[mutant] == form
