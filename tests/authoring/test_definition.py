"""What is wrong with a pattern is said when it is defined, with the author's line; what is right is described."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fxfuse
from fxfuse import Dim, Input, Param, PatternError, Scalar, keep, many, one_of, ordered, pattern

D, N = Dim("hidden"), Dim("intermediate")


def no_default(x: Any = Input(..., D), weight: Any = None) -> Any:
    return x * weight


def bare(x: Any) -> Any:
    return x + 1


def nothing() -> Any:
    return None


def unused(x: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float)) -> Any:
    return F.silu(x * weight)


def unknown_op(x: Any = Input(..., D)) -> Any:
    return F.silu(torch.logcumsumexp(x, -1))  # the line to name


def branches(x: Any = Input(..., D)) -> Any:
    return x if x.sum() > 0 else -x


def branches_on_a_size(x: Any = Input(..., D)) -> Any:
    return F.silu(x) if x.shape[0] == 1 else x


def loops(x: Any = Input(..., D)) -> Any:
    return sum(row for row in x)


def one_alternative(x: Any = Input(..., D)) -> Any:
    return one_of("act", silu=lambda: F.silu(x))


def no_alternative(x: Any = Input(..., D)) -> Any:
    return one_of("act")


def different_arities(x: Any = Input(..., D)) -> Any:
    a, _ = one_of("cut", two=lambda: tuple(x.chunk(2, -1)[i] for i in (0, 1)), one=lambda: x)
    return a


def twin_alternatives(x: Any = Input(..., D), y: Any = Input(..., D)) -> Any:
    return one_of("square", power=lambda: F.silu(y) * x.pow(2), product=lambda: (x * x) * F.silu(y))


def same_name_other_labels(x: Any = Input(..., D)) -> Any:
    a = one_of("act", silu=lambda: F.silu(x), relu=lambda: F.relu(x))
    return one_of("act", silu=lambda: F.silu(a), gelu=lambda: F.gelu(a))


def not_a_tensor(x: Any = Input(..., D)) -> Any:
    return one_of("act", silu=lambda: F.silu(x), number=lambda: 1.0)


def returns_its_capture(x: Any = Input(..., D)) -> Any:
    return F.silu(x), x


def returns_a_number(x: Any = Input(..., D)) -> Any:
    return F.silu(x), 1


def many_without_many(x: Any = Input(..., D), weights: Any = Param(N, D, many=True)) -> Any:
    return F.silu(F.linear(x, weights))


def many_of_one(x: Any = Input(..., D), weight: Any = Param(N, D)) -> Any:
    return many(lambda w: F.linear(x, w), weight)


def many_that_uses_none(x: Any = Input(..., D), weights: Any = Param(N, D, many=True)) -> Any:
    return many(lambda w: F.silu(x), weights)


def many_used_inside(x: Any = Input(..., D), weights: Any = Param(N, D, many=True)) -> Any:
    (y,) = many(lambda w: F.linear(x, w), weights)
    return F.silu(y)


def keeps_a_capture(x: Any = Input(..., D)) -> Any:
    return F.silu(keep(x))


def keeps_what_is_folded(x: Any = Input(..., D)) -> Any:
    return 1 / keep(torch.sqrt(x.float()))


def counts_from_the_front(x: Any = Input(..., D)) -> Any:
    return F.softmax(x.transpose(1, 2), -1)


def counts_from_the_front_by_default(x: Any = Input(..., D)) -> Any:
    return F.silu(torch.cat([x, x]))


def orders_a_difference(x: Any = Input(..., D), y: Any = Input(..., D)) -> Any:
    return ordered(x - y)


def scales_by_a_size(x: Any = Input(..., D)) -> Any:
    return F.silu(x) * x.shape[-1]


def reads_an_item(x: Any = Input(..., D)) -> Any:
    return F.silu(x) * x.sum().item()


def returns_none(x: Any = Input(..., D)) -> Any:
    F.silu(x)


def required_but_optional(x: Any = Input(..., D), weight: Any = Param(D, optional=True)) -> Any:
    return F.silu(x) * weight


def optional_weight_of_linear(x: Any = Input(..., D), weight: Any = Param(N, D, optional=True)) -> Any:
    return F.silu(F.linear(x, weight))


@pytest.mark.parametrize(
    ("function", "fragment"),
    [
        (no_default, r"pattern 'p': parameter 'weight' has no capture as its default; give it Input"),
        (bare, r"pattern 'p': parameter 'x' has no capture as its default"),
        (nothing, r"pattern 'p' captures nothing"),
        (unused, r"pattern 'p' never uses its capture 'eps'; remove it or use it"),
        (
            unknown_op,
            r"the canonical view does not know 'logcumsumexp'\. The nearest .*logsumexp.*\d+ ops",
        ),
        (
            scales_by_a_size,
            r"\.shape of a traced value is not known while the reference is traced.*Dim",
        ),
        (reads_an_item, r"\.item\(\) of a traced value is not known while the reference is traced"),
        (branches, r"a reference function may not branch or loop on a traced value .*; use one_of for alternatives"),
        (branches_on_a_size, r"may not branch or loop on a traced value"),
        (loops, r"may not branch or loop on a traced value"),
        (one_alternative, r"one_of\('act'\) needs at least two alternatives"),
        (no_alternative, r"one_of\('act'\) needs at least two alternatives"),
        (different_arities, r"one_of\('cut'\) returns different numbers of results: \{'two': 2, 'one': None\}"),
        (twin_alternatives, r"alternatives 'power' and 'product' of one_of\('square'\) are the same canonical graph"),
        (same_name_other_labels, r"one_of\('act'\) is used twice with different alternatives"),
        (not_a_tensor, r"one_of\('act', number=\.\.\.\) returns 1\.0, not a tensor"),
        (returns_its_capture, r"pattern 'p' returns its capture 'x' as it is"),
        (returns_a_number, r"pattern 'p' returns int; it must return a tensor or a tuple of them"),
        (returns_none, r"pattern 'p' returns NoneType; it must return a tensor or a tuple of them"),
        (required_but_optional, r"mul cannot do without its operand 'other', which is None where an optional capture"),
        (
            optional_weight_of_linear,
            r"without weight at .*linear.*The optional captures may be absent, so the function must also run",
        ),
        (many_without_many, r"capture 'weights' stands for any number of siblings; use many"),
        (many_of_one, r"many\(\.\.\.\) takes captures that are declared with many=True"),
        (many_that_uses_none, r"never uses its capture 'weights'"),
        (many_used_inside, r"what many\(\.\.\.\) returns can only be returned by the pattern"),
        (keeps_a_capture, r"keep\(\.\.\.\) takes a value that the pattern computes; given the capture 'x'"),
        (keeps_what_is_folded, r"keep\(\.\.\.\) marks a value that the canonical view folds into another op"),
        (counts_from_the_front, r"transpose counts dimension 1 from the front; count from the end"),
        (counts_from_the_front_by_default, r"cat counts dimension 0 from the front; count from the end"),
        (orders_a_difference, r"ordered\(\.\.\.\) takes the result of a commutative op; sub\(x, y\) is none"),
    ],
    ids=lambda p: p.__name__ if callable(p) else "",
)
def test_error_at_definition(function: Any, fragment: str) -> None:
    with pytest.raises(PatternError, match=fragment):
        pattern("p")(function)


@pytest.mark.parametrize("function", [unknown_op, branches, one_alternative, twin_alternatives, required_but_optional])
def test_the_authors_line_is_named(function: Any) -> None:
    with pytest.raises(PatternError) as raised:
        pattern("p")(function)
    assert f"{__file__}:{function.__code__.co_firstlineno + 1}" in str(raised.value)


def test_a_pattern_that_is_only_its_capture_matches_nothing_and_says_so() -> None:
    with pytest.raises(PatternError):
        pattern("p")(lambda x=Input(..., D): x)


@pytest.mark.parametrize("name", ["two words", "", "a-b", "1st", None, 3, lambda: None])
def test_a_name_is_an_identifier(name: Any) -> None:
    with pytest.raises(PatternError, match="a pattern's name is an identifier; given"):
        pattern(name)


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (
            lambda: Input("D"),
            "sizes are Dim, relations of them such as 2 * N, int, or a leading ...; 'D' is none of them",
        ),
        (lambda: Param(1.5), "1.5 is none of them"),
        (lambda: Param(None), "None is none of them"),
        (lambda: Input(D, ...), "only as its first size"),
        (lambda: Scalar(list), "Scalar takes one of float, int, bool, str, tuple; given <class 'list'>"),
        (lambda: Scalar(torch.Tensor), "Scalar takes one of float, int, bool, str, tuple"),
        (lambda: Scalar(1e-6), "Scalar takes one of float, int, bool, str, tuple; given 1e-06"),
    ],
)
def test_a_bad_capture(make: Any, fragment: str) -> None:
    with pytest.raises(PatternError, match=re.escape(fragment)):
        make()


def test_a_param_has_a_fixed_number_of_sizes() -> None:
    """``...`` would let a stacked expert weight pass for a matrix."""
    with pytest.raises(PatternError):
        Param(..., D)


def gated(
    x: Any = Input(..., D), gate: Any = Param(N, D), up: Any = Param(N, D), bias: Any = Param(N, optional=True)
) -> Any:
    """Gated product."""
    g = F.linear(x, gate, bias)
    return one_of("act", silu=lambda: F.silu(g), relu=lambda: F.relu(g)) * F.linear(x, up)


def test_a_constraint_takes_the_match() -> None:
    made = pattern("p")(gated)
    with pytest.raises(PatternError, match="a constraint of pattern 'p' takes one argument, the match"):
        made.constraint(lambda: None)
    with pytest.raises(PatternError, match="takes one argument"):
        made.constraint(lambda m, other: None)
    kept = made.constraint(lambda m: None)
    assert made.constraints == [kept]


def test_a_definition_error_is_a_value_error() -> None:
    assert issubclass(PatternError, ValueError)
    assert issubclass(PatternError, fxfuse.FxfuseError)


def test_tracing_leaves_no_state_behind() -> None:
    with pytest.raises(PatternError):
        pattern("p")(unknown_op)
    with pytest.raises(PatternError):
        pattern("p")(branches)
    assert pattern("p")(gated).choices == {"act": ("silu", "relu")}


def test_one_of_outside_a_pattern_names_what_is_missing() -> None:
    with pytest.raises(PatternError, match=r"unknown choice for one_of\('act'\) None.*'relu', 'silu'"):
        gated(torch.ones(2, 3), torch.ones(4, 3), torch.ones(4, 3), None)


def test_describe() -> None:
    made = pattern("p")(gated)
    assert made.describe() == (
        f"p  ({__file__}:{gated.__code__.co_firstlineno})\n"
        "  x: Input[..., hidden]\n"
        "  gate: Param[intermediate, hidden]\n"
        "  up: Param[intermediate, hidden]\n"
        "  bias: Param[intermediate] optional\n"
        "  one of act: silu, relu\n"
        "  searched from: silu, relu"
    )
    assert made.__doc__ == "Gated product."
    assert made.dims == (D, N)
    assert repr(made).startswith("<fxfuse pattern 'p' from ")


def norm(x: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float)) -> Any:
    h = x.float()
    return weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps))


def activation_in_one_alternative_only(x: Any = Input(..., D), w: Any = Param(D)) -> Any:
    return one_of("act", silu=lambda: F.silu(x), none=lambda: x + w)


def nothing_rare(x: Any = Input(..., D), w: Any = Param(D)) -> Any:
    return x * w + 1


@pytest.mark.parametrize(
    ("function", "seeds"),
    [
        (gated, {"silu", "relu"}),
        (norm, {"rsqrt"}),
        (activation_in_one_alternative_only, {"silu", "add"}),
        (nothing_rare, {"add"}),
        (lambda x=Input(..., D), w=Param(N, D): F.gelu(F.linear(torch.tanh(x), w)), {"gelu"}),
    ],
)
def test_the_search_starts_at_rare_ops_that_every_match_contains(function: Any, seeds: set[str]) -> None:
    assert {term.op for term in pattern("p")(function).forms[0].seeds} == seeds


def test_spellings_of_a_reference_are_one_pattern() -> None:
    """What the author writes goes through the same rules as a model's graph."""

    def other(x: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float)) -> Any:
        h = x.to(torch.float32)
        return torch.mul(weight, h / torch.sqrt(eps + (h * h).mean(dim=-1, keepdim=True)))

    ops = [[getattr(t, "op", t) for t in pattern("p")(f).forms[0].order if hasattr(t, "op")] for f in (norm, other)]
    assert sorted(ops[0]) == sorted(ops[1])
