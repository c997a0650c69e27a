"""`linear_cross_entropy`: what is done to the logits before the loss, each kernel, and who else may read them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from spelled import EVERY_DTYPE, Spelled, noise, refusal, run, sites, variants

NAME = "linear_cross_entropy"
SHAPES = {"head": (11, 8), "b": (11,)}


def shifted(labels):
    return F.pad(labels, (0, 1), value=-100)[..., 1:].contiguous().view(-1)


def loss(change=lambda y: y, wide=True, **options):
    def body(m, x, labels):
        logits = change(F.linear(x, m.head))
        logits = logits.float() if wide else logits
        return F.cross_entropy(logits.view(-1, 11), shifted(labels), ignore_index=-100, **options)

    return body


CHANGES = {
    "plain": lambda y: y,
    "multiplied": lambda y: y * 0.3,
    "divided": lambda y: y / 3.0,
    "capped": lambda y: torch.tanh(y / 30.0) * 30.0,
}


def tokens():
    return torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_logits(change, dtype):
    model, x = Spelled(loss(CHANGES[change]), dtype, **SHAPES), noise(2, 5, 8, dtype=dtype)
    assert variants(model, x, tokens(), pattern=NAME) == [{"rows": "flattened", "logits": change, "precision": "fp32"}]
    run(model, x, tokens(), pattern=NAME, expect=1, kernels={NAME: "reference"})
    run(model, x, tokens(), pattern=NAME, expect=1, exact=False, kernels={NAME: "chunked"})


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions(reduction):
    model, x = Spelled(loss(reduction=reduction), **SHAPES), noise(2, 5, 8)
    for kernel in ("torch", "chunked"):
        run(model, x, tokens(), pattern=NAME, expect=1, exact=False, kernels={NAME: kernel})


def test_loss_in_the_dtype_of_the_logits():
    model, x = Spelled(loss(wide=False), torch.bfloat16, **SHAPES), noise(2, 5, 8, dtype=torch.bfloat16)
    (found,) = variants(model, x, tokens(), pattern=NAME)
    assert found["precision"] == "as_given"


def test_rows_with_a_bias():
    def body(m, x, labels):
        return F.cross_entropy(F.linear(x.reshape(-1, 8), m.head, m.b), labels.view(-1), ignore_index=3)

    model, x = Spelled(body, **SHAPES), noise(2, 5, 8)
    (found,) = variants(model, x, tokens(), pattern=NAME)
    assert found["rows"] == "given"
    run(model, x, tokens(), pattern=NAME, expect=1, exact=False, kernels={NAME: "chunked"})


def test_the_function_of_torch_is_not_put_where_the_loss_is_in_fp32_of_bf16():
    model, x = Spelled(loss(), torch.bfloat16, **SHAPES), noise(2, 5, 8, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="needs x in float32"):
        sites(model, x, tokens(), pattern=NAME, kernels={NAME: "torch"})


def test_gradients_of_the_chunks():
    def trained(model, x):
        model.requires_grad_(True)
        x = x.clone().requires_grad_()
        model(x, tokens()).backward()
        return x.grad, model.get_parameter("head" if isinstance(model, Spelled) else "_orig_mod.head").grad

    options = {"patterns": [NAME], "kernels": {NAME: "chunked"}, "inner": "aot_eager", "expect_rewritten": {NAME: 1}}
    fast = torch.compile(Spelled(loss(), **SHAPES), backend="fxfuse", options=options, fullgraph=True)
    torch.testing.assert_close(trained(fast, noise(2, 5, 8)), trained(Spelled(loss(), **SHAPES), noise(2, 5, 8)))


def returned(m, x, labels):
    logits = F.linear(x, m.head)
    return F.cross_entropy(logits.float().view(-1, 11), shifted(labels)), logits


def read(m, x, labels):
    logits = F.linear(x, m.head)
    return F.cross_entropy(logits.float().view(-1, 11), shifted(labels)), logits.argmax(-1)


def smoothed(m, x, labels):
    return F.cross_entropy(F.linear(x, m.head).float().view(-1, 11), shifted(labels), label_smoothing=0.1)


def weighted(m, x, labels):
    return F.cross_entropy(F.linear(x, m.head).float().view(-1, 11), shifted(labels), weight=m.b)


def other_cap(m, x, labels):
    return F.cross_entropy((torch.tanh(F.linear(x, m.head) / 30.0) * 15.0).view(-1, 11), shifted(labels))


def no_projection(m, x, labels):
    return F.cross_entropy((x @ x.transpose(1, 2)).view(-1, 5), shifted(labels) % 5)


@pytest.mark.parametrize(("body", "code"), [
    (returned, "GRAPH_OUTPUT"), (read, "EXTERNAL_USE"), (smoothed, "LITERAL"), (weighted, "ARITY"),
    (other_cap, "BINDING"), (no_projection, "ALTERNATIVES"),
])  # fmt: skip
def test_what_is_left(body, code):
    assert refusal(Spelled(body, **SHAPES), noise(2, 5, 8), tokens(), pattern=NAME) == code
