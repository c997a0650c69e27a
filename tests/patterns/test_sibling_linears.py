"""`sibling_linears`: any number of projections of one tensor, and what they may not share."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from spelled import EVERY_DTYPE, Spelled, noise, refusal, run, sites

NAME = "sibling_linears"
THREE = {"q": (16, 8), "k": (4, 8), "v": (6, 8), "qb": (16,), "kb": (4,), "vb": (6,)}


def three(m, x):
    return F.linear(x, m.q), x @ m.k.t(), torch.matmul(x, m.v.T)


def biased(m, x):
    return F.linear(x, m.q, m.qb), F.linear(x, m.k, m.kb), torch.addmm(m.vb, x.reshape(-1, 8), m.v.t()).view(2, 3, 6)


def half_biased(m, x):
    """Whisper's key has no bias."""
    return F.linear(x, m.q, m.qb), F.linear(x, m.k), F.linear(x, m.v, m.vb)


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("body", [three, biased, half_biased])
def test_unequal_widths(body, dtype):
    model, x = Spelled(body, dtype, **THREE), noise(2, 3, 8, dtype=dtype)
    run(model, x, pattern=NAME, expect=1, kernels={NAME: "plain"})


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize(("body", "kernel"), [(three, "stacked"), (biased, "stacked_biased")])
def test_stacked(body, kernel, dtype):
    model, x = Spelled(body, dtype, **THREE), noise(2, 3, 8, dtype=dtype)
    run(model, x, pattern=NAME, expect=1, exact=False, kernels={NAME: kernel}, weights="inline")


def test_a_kernel_with_stacked_biases_is_not_put_where_one_lacks():
    with pytest.raises(ValueError, match="some of the site's siblings lack"):
        sites(Spelled(half_biased, **THREE), noise(2, 3, 8), pattern=NAME, kernels={NAME: "stacked_biased"})


def test_groups_by_what_they_read():
    def body(m, x):
        y = torch.tanh(x)
        return F.linear(x, m.q), F.linear(y, m.q), F.linear(x, m.k), F.linear(y, m.k), F.linear(y, m.v)

    found = [s for s in sites(Spelled(body, **THREE), noise(2, 8), pattern=NAME) if s.outcome == "rewritten"]
    assert len(found) == 2


def single(m, x):
    return F.linear(x, m.q), F.linear(x.sin(), m.k)


def computed(m, x):
    return F.linear(x, m.q), F.linear(x, m.k * 2)


@pytest.mark.parametrize(("body", "code"), [(single, "ARITY"), (computed, "NOT_A_PARAM")])
def test_what_are_no_siblings(body, code):
    assert refusal(Spelled(body, **THREE), noise(2, 8), pattern=NAME) == code


@pytest.mark.parametrize("weights", ["auto", "inline"])
def test_one_weight_twice(weights):
    def body(m, x):
        return F.linear(x, m.k) + F.linear(x, m.k).tanh(), F.linear(x, m.q)

    run(Spelled(body, **THREE), noise(2, 8), pattern=NAME, expect=1, exact=False, weights=weights)
