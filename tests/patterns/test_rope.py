"""`rope` and `qk_norm_rope`: each way of pairing entries, each place of the casts, and turns the other way."""

from __future__ import annotations

import pytest
import torch
from spelled import EVERY_DTYPE, LOW, Spelled, noise, refusal, run, variants

HEAD, TOKENS = 8, 5


def rotate_half(x):
    a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-b, a), dim=-1)


def rotate_every_two(x):
    a, b = x[:, :, :, ::2], x[:, :, :, 1::2]
    return torch.stack((-b, a), dim=-1).flatten(-2)


def gpt_oss(m, x, cos, sin):
    a, b = torch.chunk(x, 2, dim=-1)
    cos, sin = cos[..., :4], sin[..., :4]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def gpt_fast(m, x, cos, sin):
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)
    cos, sin = cos[..., :4], sin[..., :4]
    a = pairs[..., 0] * cos - pairs[..., 1] * sin
    b = pairs[..., 1] * cos + pairs[..., 0] * sin
    return torch.stack([a, b], -1).flatten(3).type_as(x)


def llama4(m, x, cos, sin):
    turns = torch.complex(cos[..., :4].float(), sin[..., :4].float())
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(3).type_as(x)


def partial(m, x, cos, sin):
    turned, rest = x[..., :4], x[..., 4:]
    turned = turned * cos[..., :4] + rotate_half(turned) * sin[..., :4]
    return torch.cat((turned, rest), dim=-1)


SPELLINGS = {
    "llama": ({"pairs": "halves", "halves": "as_given"}, lambda m, x, c, s: (x * c) + (rotate_half(x) * s)),
    "cohere": (
        {"pairs": "adjacent", "adjacent": "as_given"},
        lambda m, x, c, s: (x.float() * c + rotate_every_two(x.float()) * s).to(x.dtype),
    ),
    "ernie": (
        {"pairs": "adjacent", "adjacent": "wide_after"},
        lambda m, x, c, s: (x.float() * c + rotate_every_two(x).float() * s).to(x.dtype),
    ),
    "gptj": ({"pairs": "adjacent", "adjacent": "as_given"}, lambda m, x, c, s: x * c + rotate_every_two(x) * s),
    "gpt_oss": ({"pairs": "halves_angles"}, gpt_oss),
    "gpt_fast": ({"pairs": "adjacent_angles"}, gpt_fast),
    "llama4": ({"pairs": "complex"}, llama4),
    "partial": ({"pairs": "halves", "halves": "as_given"}, partial),
}


def tables(dtype):
    angles = noise(1, 1, TOKENS, HEAD, seed=9)
    return angles.cos().to(dtype), angles.sin().to(dtype)


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name, dtype):
    variant, body = SPELLINGS[name]
    x = noise(2, 3, TOKENS, HEAD, dtype=dtype)
    found = variants(Spelled(body), x, *tables(dtype), pattern="rope")
    if dtype is torch.float32:  # casts to fp32 are none there
        variant = {choice: "as_given" if label == "wide_after" else label for choice, label in variant.items()}
    assert found == [variant]
    run(Spelled(body), x, *tables(dtype), pattern="rope", expect=1)


def test_cast_back_of_wide_tables():
    """OLMo's tables are in fp32, and so is the rotation: where the casts stand is the same then."""
    body = SPELLINGS["llama"][1]
    model = Spelled(lambda m, x, c, s: body(m, x, c, s).to(x.dtype))
    x = noise(2, 3, TOKENS, HEAD, dtype=LOW)
    assert variants(model, x, *tables(torch.float32), pattern="rope") == [{"pairs": "halves", "halves": "as_given"}]
    assert variants(Spelled(body), x, *tables(torch.float32), pattern="rope") == []  # hands on fp32


OTHERS = {
    "nanochat": lambda m, x, c, s: x * c + torch.cat((x[..., 4:], -x[..., :4]), -1) * s,
    "unsigned": lambda m, x, c, s: x * c + torch.cat((x[..., 4:], x[..., :4]), -1) * s,
    "swapped_halves": lambda m, x, c, s: x * c + torch.cat((-x[..., :4], x[..., 4:]), -1) * s,
    "difference": lambda m, x, c, s: x * c - rotate_half(x) * s,
    "of_another": lambda m, x, c, s: x * c + rotate_half(x.sin()) * s,
    "thirds": lambda m, x, c, s: x * c + torch.cat((-x[..., 6:], x[..., :6]), -1) * s,
    "other_dimension": lambda m, x, c, s: x * c + torch.cat((-x[:, 1:], x[:, :1]), 1) * s,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_turns_are_left(name):
    code = refusal(Spelled(OTHERS[name]), noise(2, 3, TOKENS, HEAD), *tables(torch.float32), pattern="rope")
    assert code in {"OP", "LITERAL", "ALTERNATIVES", "BINDING", None}


def flipped_angles(m, x, c, s):
    a, b = torch.chunk(x, 2, dim=-1)
    return torch.cat((a * c[..., :4] + b * s[..., :4], b * c[..., :4] - a * s[..., :4]), dim=-1)


def test_angles_turned_the_other_way_are_left():
    assert variants(Spelled(flipped_angles), noise(2, 3, TOKENS, HEAD), *tables(torch.float32), pattern="rope") == []


# --- with the norm in front -----------------------------------------------------------------------------------------


def norm(w, x):
    h = x.float()
    return w * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def turned(h, c, s):
    return h * c + rotate_half(h) * s


NORMED = {
    "swapped": lambda m, x, c, s: turned(norm(m.w, x.view(2, TOKENS, 3, HEAD)).transpose(1, 2), c, s),
    "straight": lambda m, x, c, s: turned(norm(m.w, x.view(2, TOKENS, 3, HEAD).transpose(1, 2)), c, s),
    "cut_and_swapped": lambda m, x, c, s: turned(norm(m.all, x).view(2, TOKENS, 3, HEAD).transpose(1, 2), c, s),
}
SHAPES = {"w": (HEAD,), "all": (3 * HEAD,)}


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("layout", NORMED)
def test_norm_and_rotation(layout, dtype):
    model, x = Spelled(NORMED[layout], dtype, **SHAPES), noise(2, TOKENS, 3 * HEAD, dtype=dtype)
    found = variants(model, x, *tables(dtype), pattern="qk_norm_rope")
    assert found == [{"norm": "early", "layout": layout}]
    run(model, x, *tables(dtype), pattern="qk_norm_rope", expect=1)


def read_between(m, x, c, s):
    h = norm(m.w, x.view(2, TOKENS, 3, HEAD).transpose(1, 2))
    return turned(h, c, s), h.sum()


def after(m, x, c, s):
    return norm(m.w, turned(x.view(2, TOKENS, 3, HEAD).transpose(1, 2), c, s))


def between(m, x, c, s):
    return turned(norm(m.w, x.view(2, TOKENS, 3, HEAD).transpose(1, 2)).tanh(), c, s)


@pytest.mark.parametrize(
    ("body", "codes"),
    [(read_between, {"EXTERNAL_USE"}), (after, {"OP", "BINDING", "ALTERNATIVES"}), (between, {"OP", "ALTERNATIVES"})],
)
def test_norms_that_are_not_in_front_are_left(body, codes):
    code = refusal(Spelled(body, **SHAPES), noise(2, TOKENS, 3 * HEAD), *tables(torch.float32), pattern="qk_norm_rope")
    assert code in codes
