"""Splits, merges, permutations and slices: one op for each effect, and other ops for other effects."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from support import canonicals, value_of


@dataclass
class Effect:
    """Spellings that move the same elements to the same places, and others that do not."""

    form: str
    spellings: tuple[str, ...]
    mutants: tuple[str, ...]


EFFECTS = [
    Effect(
        "split_last(x, size=4)",
        (
            "x.view(2, 3, 2, 4)",
            "x.reshape(2, 3, -1, 4)",
            "x.view(*x.shape[:-1], -1, 4)",
            "x.view(x.size()[:-1] + (2, 4))",
            "x.unflatten(-1, (-1, 4))",
            "x.unflatten(2, (2, 4))",
            "torch.unflatten(x, -1, (2, -1))",
            "torch.reshape(x, (2, 3, 2, 4))",
        ),
        (
            "x.view(2, 3, 4, 2)",
            "x.view(3, 2, 2, 4)",
            "x.view(6, 2, 4)",
            "x.view(2, 3, 2, 2, 2)",
            "x.transpose(0, 1).reshape(2, 3, 2, 4)",
        ),
    ),
    Effect(
        "merge_last(x)",
        (
            "x.flatten(-2)",
            "x.flatten(1)",
            "x.reshape(2, 24)",
            "x.view(x.size(0), -1)",
            "x.reshape(*x.shape[:-2], -1)",
            "torch.flatten(x, start_dim=1)",
            "x.contiguous().view(2, 3 * 8)",
        ),
        ("x.flatten()", "x.flatten(0, 1)", "x.reshape(3, 16)", "x.transpose(1, 2).flatten(1)", "x.view(24, 2)"),
    ),
    Effect(
        "rows(x)",
        ("x.view(6, 8)", "x.view(-1, 8)", "x.flatten(0, 1)", "x.reshape(-1, x.shape[-1])", "x.view(-1, x.size(-1))"),
        ("x.view(8, 6)", "x.transpose(0, 1).reshape(6, 8)"),
    ),
    Effect(
        "transpose(split_last(x, size=4), dim0=-3, dim1=-2)",
        (
            "x.view(2, 3, 2, 4).transpose(1, 2)",
            "x.unflatten(-1, (2, 4)).permute(0, 2, 1, 3)",
            "x.view(2, 3, 2, 4).swapaxes(2, 1)",
            "x.reshape(2, 3, -1, 4).movedim(2, 1)",
            "x.view(2, 3, 2, 4).movedim(-3, -2)",
        ),
        ("x.view(2, 3, 2, 4).transpose(1, 3)", "x.view(2, 2, 3, 4)", "x.view(2, 3, 2, 4).permute(0, 2, 3, 1)"),
    ),
    Effect(
        "merge_last(transpose(transpose(split_last(x, size=4), dim0=-3, dim1=-2), dim0=-3, dim1=-2))",
        ("x.view(2, 3, 2, 4).transpose(1, 2).transpose(1, 2).contiguous().reshape(2, 3, -1)",),
        ("x.view(2, 3, 2, 4).transpose(1, 2).reshape(2, 3, -1)",),
    ),
    Effect(
        "repeat_interleave(C, repeats=2, dim=-3)",
        (
            "C[:, None].expand(2, 2, 8, 8).reshape(4, 8, 8)",
            "C.repeat_interleave(2, dim=0)",
            "torch.repeat_interleave(C, 2, 0)",
            "torch.repeat_interleave(C, repeats=2, dim=-3)",
            "C.unsqueeze(1).expand(-1, 2, -1, -1).flatten(0, 1)",
        ),
        (
            "C[None].expand(2, 2, 8, 8).reshape(4, 8, 8)",
            "C.repeat(2, 1, 1)",
            "C[:, None].expand(2, 3, 8, 8).reshape(6, 8, 8)",
            "C.repeat_interleave(2, dim=1)",
            "C[:, :, None].expand(2, 8, 2, 8).reshape(4, 8, 8)",
        ),
    ),
    Effect(
        "repeat_interleave(C, repeats=2, dim=-2)",
        ("C[:, :, None].expand(2, 8, 2, 8).reshape(2, 16, 8)", "C.repeat_interleave(2, 1)"),
        ("C[:, None].expand(2, 2, 8, 8).reshape(2, 16, 8)", "C.repeat_interleave(2, 2)"),
    ),
    Effect(
        "slice(x, dim=-1, stop=3)",
        ("x[..., :3]", "x[:, :, 0:3]", "x.narrow(-1, 0, 3)", "x.split([3, 5], -1)[0]", "x[..., :-5]"),
        ("x[..., :5]", "x[..., 3:]", "x[:, :3]", "x[..., 1:4]"),
    ),
    Effect(
        "slice(x, dim=-1, start=3)",
        ("x[..., 3:]", "x.narrow(2, 3, 5)", "x.split((3, 5), dim=-1)[1]", "x[:, :, -5:]", "x.split([3, 5], -1)[-1]"),
        ("x[..., :3]", "x[..., 5:]", "x.split((5, 3), dim=-1)[1]"),
    ),
    Effect(
        "slice(x, dim=-1, start=1, stop=4)",
        ("x[..., 1:4]", "x.split([1, 3, 4], -1)[1]", "x.narrow(-1, 1, 3)", "x[..., 1:-4]"),
        ("x[..., 1:5]", "x.split([1, 4, 3], -1)[1]", "x[..., 4:7]"),
    ),
    Effect(
        "slice(x, dim=-1, step=2)",
        (
            "x[..., ::2]",
            "x[:, :, 0::2]",
            "x.unflatten(-1, (4, 2))[..., 0]",
            "x.view(2, 3, 4, 2).unbind(-1)[0]",
            "x.view(2, 3, 4, 2).select(-1, 0)",
        ),
        ("x[..., 1::2]", "x[..., ::4]", "x.view(2, 3, 2, 4)[..., 0]", "x[..., :4]"),
    ),
    Effect(
        "slice(x, dim=-1, start=1, step=2)",
        ("x[..., 1::2]", "x.unflatten(-1, (-1, 2))[..., 1]", "x.view(2, 3, 4, 2).unbind(-1)[-1]"),
        ("x[..., ::2]", "x[..., 1:4:2]"),
    ),
    Effect(
        "part(x, dim=-1, index=1, of=2)",
        (
            "x.chunk(2, -1)[1]",
            "x.view(2, 3, 2, 4)[..., 1, :]",
            "x.view(2, 3, 2, -1).select(-2, 1)",
            "x.unflatten(-1, (2, 4)).unbind(-2)[1]",
            "x.tensor_split(2, dim=-1)[1]",
            "x.narrow(-1, 4, 4)",
        ),
        (
            "x.view(2, 3, 2, 4)[..., 0, :]",
            "x.view(2, 3, 4, 2)[..., 1]",
            "x.tensor_split(3, dim=-1)[1]",
            "x.view(2, 3, 4, 2)[:, :, 1]",
        ),
    ),
    Effect(
        "select(x, dim=-2, index=0)",
        ("x[:, 0]", "x[:, 0, :]", "x.select(1, 0)", "x.unbind(1)[0]", "x[:, -3]", "torch.select(x, -2, 0)"),
        ("x[:, 1]", "x[0]", "x[:, 0:1]", "x[..., 0]"),
    ),
    Effect(
        "unsqueeze(x, dim=-3)",
        ("x[:, None]", "x.unsqueeze(1)", "x[:, None, :, :]", "x[..., None, :, :]", "torch.unsqueeze(x, -3)"),
        ("x[None]", "x[:, :, None]", "x.unsqueeze(0)"),
    ),
    Effect(
        "unsqueeze(part(x, dim=-1, index=1, of=2), dim=-3)",
        ("x[:, None, :, 4:]",),
        ("x[:, None, :, :4]", "x[:, :, None, 4:]"),
    ),
    Effect(
        "merge_last(stack(tensors=(neg(slice(x, dim=-1, start=1, step=2)), slice(x, dim=-1, step=2)), dim=-1))",
        (
            "torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)",
            "torch.stack([-x.view(2, 3, 4, 2)[..., 1], x.view(2, 3, 4, 2)[..., 0]], -1).view(2, 3, 8)",
        ),
        (
            "torch.stack((x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)",
            "torch.stack((-x[..., 1::2], x[..., ::2]), dim=-2).flatten(-2)",
        ),
    ),
]


def test_a_slice_of_what_the_view_does_not_know() -> None:
    """GPT-OSS takes every other column of its experts' product."""
    form = canonicals(["torch.logcumsumexp(x, -1)[..., ::2]"])
    assert list(form.values()) == ["slice(?logcumsumexp, dim=-1, step=2)"]


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda e: e.form)
def test_one_effect_is_one_op(effect: Effect) -> None:
    forms = canonicals([*effect.spellings, *effect.mutants])
    want = value_of(effect.spellings[0])
    for spelling in effect.spellings:
        assert torch.equal(value_of(spelling), want), f"{spelling} is another function"
        assert forms[spelling] == effect.form, spelling
    for mutant in effect.mutants:
        value = value_of(mutant)
        assert value.shape != want.shape or not torch.equal(value, want), f"{mutant} is no mutant"
        assert forms[mutant] != effect.form, mutant
