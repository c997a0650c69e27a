"""A reference function, traced without shapes and dtypes, has the canonical forms of the models that spell it."""

from __future__ import annotations

import pytest
import torch
from support import SHAPES, canonicals, function_of, words
from torch import fx

from fxfuse.view import Leaf, LeafKind, View

PARAMETERS = {"w", "W", "M"}


def reference_view(expression: str) -> tuple[View, fx.Node]:
    graph = fx.Tracer().trace(function_of(expression))
    leaves = [Leaf(LeafKind.PARAMETER if name in PARAMETERS else LeafKind.INPUT, name) for name in SHAPES]
    (output,) = graph.find_nodes(op="output")
    return View(graph, symbolic=True, leaves=leaves), output.args[0]


def reference_form(expression: str) -> str:
    view, root = reference_view(expression)
    return words(view, view.value(root))


# What an author writes, and what models write.
SAME: dict[str, tuple[str, ...]] = {
    "x.unflatten(-1, (-1, 4))": ("x.view(2, 3, 2, 4)", "x.reshape(2, 3, -1, 4)", "x.unflatten(2, (2, 4))"),
    "x.view(x.shape[:-1] + (-1, 4))": ("x.view(2, 3, 2, 4)", "x.view(*x.shape[:-1], -1, 4)"),
    "x.reshape(x.size()[:-1] + (-1, 4))": ("x.view(2, 3, 2, 4)",),
    "x.flatten(-2)": ("x.reshape(2, -1)", "x.view(2, 24)"),
    "x.reshape(x.shape[:-2] + (-1,))": ("x.reshape(2, -1)", "x.flatten(1)"),
    "x.unflatten(-1, (-1, 4)).transpose(-3, -2)": ("x.view(2, 3, 2, 4).transpose(1, 2)",),
    "x.unflatten(-1, (-1, 4)).permute(0, 2, 1, 3)": ("x.view(2, 3, 2, 4).transpose(1, 2)",),
    "x.unflatten(-1, (-1, 4)).movedim(-2, -3)": ("x.view(2, 3, 2, 4).transpose(1, 2)",),
    "x.chunk(2, -1)[1]": ("x[..., 4:]", "x.chunk(2, dim=2)[1]", "x.narrow(-1, 4, 4)"),
    "x[..., x.shape[-1] // 2 :]": ("x[..., 4:]", "x.chunk(2, dim=-1)[1]"),
    "x[..., : x.size(-1) // 2]": ("x[..., :4]", "x.split(4, -1)[0]"),
    "x.split((4, 4), -1)[0]": ("x[..., :4]",),
    "x.split((3, 5), dim=-1)[1]": ("x[..., 3:]", "x.narrow(-1, 3, 5)"),
    "x.narrow(-1, 0, 3)": ("x[..., :3]", "x.split([3, 5], -1)[0]"),
    "x[..., :3]": ("x.narrow(2, 0, 3)", "x.split([3, 5], -1)[0]"),
    "x[..., 3:]": ("x.split([3, 5], -1)[1]",),
    "x[..., 1::2]": ("x[:, :, 1::2]", "x.view(2, 3, 4, 2)[..., 1]"),
    "x.unflatten(-1, (2, -1))[..., 0, :]": ("x.chunk(2, -1)[0]", "x.view(2, 3, 2, 4)[..., 0, :]"),
    "x.unflatten(-1, (2, -1)).unbind(-2)[1]": ("x.chunk(2, -1)[1]", "x[..., 4:]"),
    "x.unflatten(-1, (-1, 2)).unbind(-1)[0]": ("x[..., ::2]",),
    "x.select(-2, 0)": ("x[:, 0]", "x.unbind(1)[0]"),
    "x[..., None, :]": ("x[:, :, None]", "x.unsqueeze(2)"),
    "torch.cat((-x.chunk(2, -1)[1], x.chunk(2, -1)[0]), dim=-1)": ("torch.cat([-x[..., 4:], x[..., :4]], 2)",),
    "torch.stack((x, y), dim=-1).flatten(-2)": ("torch.stack([x, y], -1).view(2, 3, 16)",),
    "C.repeat_interleave(2, dim=-3)": ("C[:, None].expand(2, 2, 8, 8).reshape(4, 8, 8)",),
    "F.linear(x, W)": ("x @ W.t()", "x @ W.T", "torch.einsum('...d,nd->...n', x, W)"),
    "x @ W.t()": ("F.linear(x, W)",),
    "x @ W.transpose(-1, -2)": ("F.linear(x, W)",),
    "torch.einsum('...d,nd->...n', x, W)": ("F.linear(x, W)",),
    "torch.addmm(w, x, M)": ("torch.addmm(w, x.view(-1, 8), M).view(2, 3, 8)",),
    "x @ y.transpose(-1, -2)": ("torch.bmm(x, y.mT)", "torch.einsum('bid,bjd->bij', x, y)"),
    "x @ y.mT / 8": ("torch.bmm(x, y.transpose(1, 2)) * 0.125",),
    "F.scaled_dot_product_attention(x, y, y, is_causal=True)": (
        "F.scaled_dot_product_attention(x, y, y, None, 0.0, True)",
    ),
    "torch.where(y > 0, -1e4, x)": ("x.masked_fill(y > 0, -1e4)",),
    "1 - x": ("torch.rsub(x, 1)",),
    "x.clone().contiguous() + y": ("x + y",),
}


@pytest.mark.parametrize("reference", SAME)
def test_reference_and_models_have_one_form(reference: str) -> None:
    form = reference_form(reference)
    for spelling, got in canonicals(SAME[reference]).items():
        assert got == form, spelling


ROUNDED_ONCE = {
    "torch.softmax(x, -1)": "F.softmax(x, dim=2)",
    "F.softmax(x, dim=-1, dtype=torch.float32)": "torch.softmax(x.float(), -1)",
    "F.rms_norm(x, w.shape, w, 1e-5)": "F.rms_norm(x, (8,), w, 1e-5)",
    "F.layer_norm(x, w.shape, w, w, 1e-5)": "F.layer_norm(x, (8,), w, w)",
    "F.layer_norm(x, (8,))": "F.layer_norm(x, (8,), eps=1e-5)",
}


@pytest.mark.parametrize("reference", ROUNDED_ONCE)
def test_a_reference_holds_the_casts_inside_an_op(reference: str) -> None:
    """In bf16 the model's form is the reference's, to the last cast."""
    form = canonicals([ROUNDED_ONCE[reference]], torch.bfloat16)[ROUNDED_ONCE[reference]]
    assert reference_form(reference).replace("dtype=x.dtype", "dtype=bf16") == form


# What holds in every dtype, where the form that a reference has holds in fp32 only.
PLAIN = {
    "x * torch.sigmoid(x)": ("silu(x)", "mul(x, sigmoid(x))"),
    "(lambda h: h * torch.sigmoid(h))(x.float())": ("silu(cast(x, dtype=f32))", None),
    "x / torch.sqrt(v)": ("mul(x, rsqrt(v))", "div(x, sqrt(v))"),
    "F.linear(x, M) + w": ("linear(x, M, w)", "add(linear(x, M), w)"),
    "F.silu(x)": ("silu(x)", None),
    "x / 8": ("mul(x, other=0.125)", None),
}


@pytest.mark.parametrize("reference", PLAIN)
def test_a_form_for_fp32_keeps_the_plain_one(reference: str) -> None:
    view, root = reference_view(reference)
    value = view.value(root)
    form, plain = PLAIN[reference]
    assert words(view, value) == form
    assert (None if value.plain is None else words(view, value.plain)) == plain


@pytest.mark.parametrize(
    "reference",
    [
        "x.view(2, 3, 2, 4)",  # nothing says that only the last dimension is split
        "x.unflatten(-1, (2, 4))",  # 2 might be wrong of what is given
        "x @ y.transpose(0, 1)",
        "x[1]",
        "x[:, 0]",
        "x.flatten(1)",
        "x.split(4, -1)[0]",
    ],
)
def test_what_a_reference_without_shapes_leaves_open(reference: str) -> None:
    form = reference_form(reference)
    assert not any(op in form for op in ("split_last", "merge_last", "linear", "part", "select"))
