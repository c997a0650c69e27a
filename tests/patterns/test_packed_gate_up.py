"""The ways in which models cut one projection into gate and up; which half is which decides the variant."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from spelled import EVERY_DTYPE, Spelled, noise, refusal, run, variants

NAME = "gated_mlp"
SHAPES = {"both": (24, 8), "down": (8, 12), "both_bias": (24,)}

CUTS = {
    "chunk": lambda y: y.chunk(2, -1),
    "chunk_keyword": lambda y: y.chunk(2, dim=2),
    "split": lambda y: y.split(12, -1),
    "split_sizes": lambda y: y.split([12, 12], dim=-1),
    "slices": lambda y: (y[..., :12], y[..., 12:]),
    "view": lambda y: (y.view(2, 3, 2, -1)[..., 0, :], y.view(2, 3, 2, -1)[..., 1, :]),
    "unflatten": lambda y: y.unflatten(-1, (2, -1)).unbind(-2),
    "narrow": lambda y: (y.narrow(-1, 0, 12), y.narrow(-1, 12, 12)),
}


def mlp(cut, first_is_gate):
    def body(m, x):
        a, b = cut(F.linear(x, m.both))
        gate, up = (a, b) if first_is_gate else (b, a)
        return F.linear(up * F.silu(gate), m.down)

    return body


@pytest.mark.parametrize("first_is_gate", [True, False])
@pytest.mark.parametrize("name", CUTS)
def test_cuts(name, first_is_gate):
    model, x = Spelled(mlp(CUTS[name], first_is_gate), **SHAPES), noise(2, 3, 8)
    wanted = "packed" if first_is_gate else "packed_up_first"
    assert variants(model, x, pattern=NAME) == [{"proj": wanted, "act": "silu"}]


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_rewritten(dtype):
    model = Spelled(mlp(CUTS["view"], False), dtype, **SHAPES)
    run(model, noise(2, 3, 8, dtype=dtype), pattern=NAME, expect=1, kernels={NAME: "plain"})


OTHERS = {
    "every_other": lambda y: (y[..., ::2], y[..., 1::2]),  # GPT-OSS
    "same_half": lambda y: (y[..., :12], y[..., :12]),
    "shifted": lambda y: (y[..., :12], y[..., 6:18]),
    "thirds": lambda y: y.chunk(3, -1)[:2],
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_cut_otherwise_is_left(name):
    shapes = {**SHAPES, "down": (8, 8)} if name == "thirds" else SHAPES
    model = Spelled(mlp(OTHERS[name], True), **shapes)
    assert refusal(model, noise(2, 3, 8), pattern=NAME) in {"OP", "LITERAL", "ALTERNATIVES", "BINDING"}
