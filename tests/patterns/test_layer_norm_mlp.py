"""`layer_norm_mlp`: before and after the norm, both ways to store weights, each activation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from spelled import EVERY_DTYPE, LOW, Spelled, noise, refusal, run, variants

NAME = "layer_norm_mlp"
SHAPES = {
    "w": (8,), "b": (8,), "fc": (12, 8), "fcb": (12,), "proj": (8, 12), "projb": (8,), "fcc": (8, 12), "projc": (12, 8),
}  # fmt: skip


BEFORE = {"affine": "scale_shift", "order": "before", "store": "rows"}


def gelu_new(h):
    return 0.5 * h * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (h + 0.044715 * torch.pow(h, 3.0))))


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda h: F.gelu(h, approximate="tanh"),
    "gelu_new": gelu_new,
    "quick_gelu": lambda h: h * torch.sigmoid(1.702 * h),
    "relu": torch.relu,
    "relu2": lambda h: torch.square(F.relu(h)),
}


def norm(m, x):
    return F.layer_norm(x, (8,), m.w, m.b, 1e-5)


def before(act):
    return lambda m, x: x + F.linear(act(F.linear(norm(m, x), m.fc, m.fcb)), m.proj, m.projb)


def after(act):
    return lambda m, x: norm(m, F.linear(act(F.linear(x, m.fc, m.fcb)), m.proj) + x)


def conv1d(x, weight, bias):
    """As GPT-2 computes it."""
    return torch.addmm(bias, x.view(-1, x.size(-1)), weight).view((*x.size()[:-1], weight.size(1)))


def columns(act):
    return lambda m, x: x + conv1d(act(conv1d(norm(m, x), m.fcc, m.fcb)), m.projc, m.projb)


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(act, dtype):
    model, x = Spelled(before(ACTIVATIONS[act]), dtype, **SHAPES), noise(2, 3, 8, dtype=dtype)
    label = "gelu_tanh" if act == "gelu_new" and dtype is torch.float32 else act
    assert variants(model, x, pattern=NAME) == [{**BEFORE, "act": label}]


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize(("body", "order", "store"), [
    (before, "before", "rows"), (after, "after", "rows"), (columns, "before", "columns"),
])  # fmt: skip
def test_orders_and_storage(body, order, store, dtype):
    model, x = Spelled(body(F.gelu), dtype, **SHAPES), noise(2, 3, 8, dtype=dtype)
    assert variants(model, x, pattern=NAME) == [{**BEFORE, "order": order, "store": store, "act": "gelu"}]
    run(model, x, pattern=NAME, expect=1, exact=False)


def test_norm_by_hand():
    def body(m, x):
        centred = x - x.mean(-1, keepdim=True)
        h = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5) * m.w + m.b
        return F.linear(F.relu(F.linear(h, m.fc)), m.proj)

    model = Spelled(body, **SHAPES)
    assert variants(model, noise(2, 8), pattern=NAME) == [{**BEFORE, "act": "relu"}]


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_norm_without_a_bias(dtype):
    def body(m, x):
        return x + F.linear(F.gelu(F.linear(F.layer_norm(x, (8,), m.w, None, 1e-5), m.fc)), m.proj)

    model, x = Spelled(body, dtype, **SHAPES), noise(2, 3, 8, dtype=dtype)
    assert variants(model, x, pattern=NAME) == [{**BEFORE, "affine": "scale", "act": "gelu"}]
    run(model, x, pattern=NAME, expect=1, exact=False)


def parallel(m, x):
    """GPT-J: attention reads the norm, too."""
    h = norm(m, x)
    return x + h.cumsum(0) + F.linear(F.gelu(F.linear(h, m.fc)), m.proj)


def other_residual(m, x):
    return norm(m, F.linear(F.gelu(F.linear(x, m.fc)), m.proj) + x.sin())


def no_activation(m, x):
    return F.linear(F.linear(norm(m, x), m.fc), m.proj)


def gated(m, x):
    h = norm(m, x)
    return F.linear(F.gelu(F.linear(h, m.fc)) * F.linear(h, m.fc), m.proj)


def root_mean_square(m, x):
    return F.linear(F.gelu(F.linear(F.rms_norm(x, (8,), m.w, 1e-5), m.fc)), m.proj)


def active_dropout(m, x):
    return F.linear(F.dropout(F.gelu(F.linear(norm(m, x), m.fc)), 0.1, True), m.proj)


def scaled(m, x):
    return F.linear(F.gelu(F.linear(norm(m, x), m.fc)) * 0.5, m.proj)


def no_weight(m, x):
    """OLMo."""
    return F.linear(F.gelu(F.linear(F.layer_norm(x, (8,)), m.fc)), m.proj)


def one_more(m, x):
    """Nemotron's LayerNorm1P."""
    return F.linear(F.gelu(F.linear(F.layer_norm(x, (8,), m.w + 1.0, m.b), m.fc)), m.proj)


def quick_gelu_of_another_slope(m, x):
    h = F.linear(norm(m, x), m.fc)
    return F.linear(h * torch.sigmoid(1.7 * h), m.proj)


def quick_gelu_of_two(m, x):
    h = norm(m, x)
    return F.linear(F.linear(h, m.fc) * torch.sigmoid(1.702 * F.linear(h, m.fc, m.fcb)), m.proj)


@pytest.mark.parametrize(("body", "codes"), [
    (no_weight, {"OP", "ALTERNATIVES"}), (one_more, {"NOT_A_PARAM", "OP", "ALTERNATIVES"}),
    (quick_gelu_of_another_slope, {"LITERAL", "ALTERNATIVES"}), (quick_gelu_of_two, {"OP", "BINDING", "ALTERNATIVES"}),
    (parallel, {"EXTERNAL_USE", "BINDING"}), (other_residual, {"BINDING"}), (no_activation, {"ALTERNATIVES", "OP"}),
    (gated, {"OP", "ALTERNATIVES"}), (root_mean_square, {"OP", "ALTERNATIVES"}),
    (active_dropout, {"OP", "ALTERNATIVES"}),
    (scaled, {"OP", "ALTERNATIVES"}),
])  # fmt: skip
def test_what_is_another_function_is_left(body, codes):
    assert refusal(Spelled(body, **SHAPES), noise(2, 8), pattern=NAME) in codes


def test_polynomials_with_other_constants_are_left():
    def near(h):
        return 0.5 * h * (1.0 + torch.tanh(0.8 * (h + 0.044715 * torch.pow(h, 3.0))))

    for dtype in EVERY_DTYPE:
        assert variants(Spelled(before(near), dtype, **SHAPES), noise(2, 3, 8, dtype=dtype), pattern=NAME) == []


def test_polynomial_is_not_the_one_op_in_bf16():
    """Each of its steps rounds: put for each other they would differ."""
    x = noise(64, dtype=LOW)
    assert not torch.equal(gelu_new(x), F.gelu(x, approximate="tanh"))
