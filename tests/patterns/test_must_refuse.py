"""The models that peers fuse wrongly: each is refused with the reason that is its own, and left bit-equal.

The spellings are those of Gemma 2 and 3n, Mixtral's router, GPT-J's parallel blocks, BitNet, Falcon-H1, DeepSeek V4 and
Zamba 2. nanochat's rotation is in test_rope.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spelled import Spelled, noise, refusal, run, sites

HEADLINE, BARE = "rms_norm_gated_mlp", "gated_mlp"
SHAPES = {
    "w": (8,), "w2": (8,), "sub": (12,), "gate": (12, 8), "up": (12, 8), "both": (24, 8), "down": (8, 12),
    "gb": (12,), "ub": (12,), "router": (4, 8), "q": (8, 8), "low": (2, 8), "high": (24, 2),
}  # fmt: skip


def norm(w, x):
    h = x.float()
    return w * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def mlp(m, h, act=F.silu):
    return F.linear(act(F.linear(h, m.gate)) * F.linear(h, m.up), m.down)


def gemma2_pair(m, x):
    """post_attention_layernorm and the MLP have a residual add between them."""
    return mlp(m, x + norm(m.w, x.sin()))


def router(m, x):
    h = norm(m.w, x)
    return F.linear(h, m.router).softmax(-1), mlp(m, h)


def parallel_attention(m, x):
    h = norm(m.w, x)
    return x + F.linear(h, m.q) + mlp(m, h)


def returned_norm(m, x):
    h = norm(m.w, x)
    return mlp(m, h), h


def bitnet(m, x):
    h = norm(m.w, x)
    return F.linear(norm(m.sub, F.silu(F.linear(h, m.gate)) * F.linear(h, m.up)), m.down)


def falcon_h1(m, x):
    h = norm(m.w, x)
    return F.linear(F.linear(h, m.up) * F.silu(F.linear(h, m.gate) * 0.7), m.down)


def deepseek_v4(m, x):
    h = norm(m.w, x)
    gate = F.linear(h, m.gate).clamp(max=7.0)
    up = F.linear(h, m.up).clamp(min=-7.0, max=7.0)
    return F.linear(F.silu(gate) * up, m.down)


def gemma3n(m, x):
    h = norm(m.w, x)
    gate = F.linear(h, m.gate)
    cutoff = gate.mean(-1, keepdim=True) + gate.std(-1, keepdim=True, unbiased=False) * 1.6
    return F.linear(F.gelu(F.relu(gate - cutoff), approximate="tanh") * F.linear(h, m.up), m.down)


def zamba2(m, x):
    h = norm(m.w, x)
    both = F.linear(h, m.both) + F.linear(F.linear(h, m.low), m.high)
    gate, up = both.chunk(2, -1)
    return F.linear(F.gelu(gate) * up, m.down)


def dropout(m, x):
    h = norm(m.w, x)
    return F.linear(F.dropout(F.silu(F.linear(h, m.gate)) * F.linear(h, m.up), 0.1, True), m.down)


def mixed_bias(m, x):
    h = norm(m.w, x)
    return F.linear(F.silu(F.linear(h, m.gate, m.gb)) * F.linear(h, m.up), m.down)


def other_dtype(m, x):
    h = norm(m.w, x)
    return F.linear(F.silu(F.linear(h, m.gate)) * F.linear(h.double(), m.up.double()).float(), m.down)


def minimax_m3(m, x):
    h = norm(m.w, x)
    gate = F.linear(h, m.gate)
    return F.linear(gate * torch.sigmoid(gate * 1.702) * (F.linear(h, m.up) + 1.0), m.down)


def other_input(m, x):
    """Gate reads the norm, up reads what the norm read."""
    return F.linear(F.silu(F.linear(norm(m.w, x), m.gate)) * F.linear(x, m.up), m.down)


REFUSED: dict[str, tuple[Any, dict[str, str | None]]] = {
    "gemma2_pair": (gemma2_pair, {HEADLINE: "OP"}),
    "router": (router, {HEADLINE: "EXTERNAL_USE"}),
    "parallel_attention": (parallel_attention, {HEADLINE: "EXTERNAL_USE"}),
    "returned_norm": (returned_norm, {HEADLINE: "GRAPH_OUTPUT"}),
    "bitnet": (bitnet, {HEADLINE: "OP", BARE: "OP"}),
    "falcon_h1": (falcon_h1, {HEADLINE: "OP", BARE: "ALTERNATIVES"}),
    "deepseek_v4": (deepseek_v4, {HEADLINE: "OP", BARE: "ALTERNATIVES"}),
    "gemma3n": (gemma3n, {HEADLINE: "OP", BARE: "ALTERNATIVES"}),
    "zamba2": (zamba2, {HEADLINE: "OP", BARE: "OP"}),
    "dropout": (dropout, {HEADLINE: "OP", BARE: "OP"}),
    "mixed_bias": (mixed_bias, {HEADLINE: "CONSTRAINT", BARE: "CONSTRAINT"}),
    "other_dtype": (other_dtype, {HEADLINE: "ALTERNATIVES", BARE: "ALTERNATIVES"}),
    "minimax_m3": (minimax_m3, {HEADLINE: None, BARE: None}),
    "other_input": (other_input, {HEADLINE: "ALTERNATIVES", BARE: "BINDING"}),
}
CASES = [(name, pattern) for name, (_, codes) in REFUSED.items() for pattern in codes]


@pytest.mark.parametrize(("name", "pattern"), CASES)
def test_refused_with_its_code(name, pattern):
    body, codes = REFUSED[name]
    assert refusal(Spelled(body, **SHAPES), noise(2, 3, 8), pattern=pattern) == codes[pattern]


@pytest.mark.parametrize("name", ["gemma2_pair", "router", "parallel_attention", "returned_norm"])
def test_the_mlp_itself_is_found_where_only_the_norm_is_in_the_way(name):
    run(Spelled(REFUSED[name][0], **SHAPES), noise(2, 3, 8), pattern=BARE, expect=1, kernels={BARE: "plain"})


def test_falcon_h1_without_multipliers_is_a_gated_mlp():
    def body(m, x):
        return F.linear(F.linear(x, m.up) * F.silu(F.linear(x, m.gate) * 1.0), m.down) * 1.0

    run(Spelled(body, **SHAPES), noise(2, 3, 8), pattern=BARE, expect=1)


def test_granite_multiplies_what_the_residual_is_added_to():
    def body(m, x):
        x = x + mlp(m, norm(m.w, x)) * 0.22
        return x, norm(m.w2, x)

    model, x = Spelled(body, **SHAPES), noise(2, 3, 8)
    run(model, x, pattern="add_rms_norm", expect=1)
    run(model, x, pattern=HEADLINE, expect=1, kernels={HEADLINE: "plain"})
    assert refusal(model, x, pattern="rms_norm_gated_mlp_add") is not None


def test_tied_gate_and_up_share_no_storage():
    model, x = Spelled(lambda m, x: mlp(m, norm(m.w, x)), **SHAPES), noise(2, 3, 8)
    model.up = model.gate
    (site,) = sites(model, x, pattern=HEADLINE, kernels={HEADLINE: "stacked"})
    assert site.weights != "share"
    run(model, x, pattern=HEADLINE, expect=1, exact=False)


def test_a_weight_that_others_read_is_stacked_once_and_stays_theirs():
    def body(m, x):
        return mlp(m, norm(m.w, x)) + mlp(m, norm(m.w2, x)) + F.linear(x, m.gate).sum()

    run(Spelled(body, **SHAPES), noise(2, 3, 8), pattern=HEADLINE, expect=2, exact=False, kernels={HEADLINE: "stacked"})
