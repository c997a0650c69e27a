"""`moe_experts`: transformers' grouped experts, traced, and what is done otherwise between the products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from spelled import LOW, Spelled, noise, refusal, run, variants

NAME = "moe_experts"
EXPERTS, HIDDEN, INNER, ROWS = 4, 16, 24, 12
SHAPES = {"gate_up": (EXPERTS, 2 * INNER, HIDDEN), "down": (EXPERTS, HIDDEN, INNER), "bias": (EXPERTS, 2 * INNER)}


def halves(y):
    return y.chunk(2, dim=-1)


def experts(cut=halves, act=F.silu, between=lambda y, m, ids: y, after=lambda y: y, last=EXPERTS - 1):
    def body(m, x, choices, weights):
        ids, order = torch.sort(choices.reshape(-1))
        routing, rows = weights.reshape(-1)[order], x[order // 2]
        ends = torch.cumsum(torch.histc(ids.float(), bins=EXPERTS, min=0, max=last), dim=0, dtype=torch.int32)
        gate, up = cut(between(F.grouped_mm(rows, m.gate_up.transpose(-2, -1), offs=ends), m, ids))
        y = after(F.grouped_mm(act(gate) * up, m.down.transpose(-2, -1), offs=ends))
        y = y * routing.unsqueeze(-1)
        back = torch.empty_like(order)
        back[order] = torch.arange(order.size(0))
        return y[back].view(ROWS // 2, 2, HIDDEN).sum(dim=1).to(x.dtype)

    return body


def inputs():
    choices = torch.randint(0, EXPERTS, (ROWS // 2, 2), generator=torch.Generator().manual_seed(2))
    return noise(ROWS // 2, HIDDEN, dtype=LOW), choices, noise(ROWS // 2, 2, seed=4).softmax(-1)


@pytest.mark.parametrize(("act", "label"), [(F.silu, "silu"), (F.relu, "relu")])
def test_grouped_experts(act, label):
    model = Spelled(experts(act=act), LOW, **SHAPES)
    assert variants(model, *inputs(), pattern=NAME) == [{"count": "floats", "act": label}]
    run(model, *inputs(), pattern=NAME, expect=1)


OTHERS = {
    "interleaved": (experts(cut=lambda y: (y[..., ::2], y[..., 1::2])), {"OP", "ALTERNATIVES"}),  # GPT-OSS
    "swapped": (experts(cut=lambda y: halves(y)[::-1]), {"LITERAL", "ALTERNATIVES", "BINDING"}),
    "biased": (experts(between=lambda y, m, ids: y + m.bias[ids]), {"OP", "ALTERNATIVES", "BINDING"}),
    "clamped": (experts(between=lambda y, m, ids: y.clamp(max=7.0)), {"OP", "ALTERNATIVES", "BINDING"}),
    "scaled": (experts(after=lambda y: y * 2.0), {"OP", "BINDING"}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_experts_are_left(name):
    body, codes = OTHERS[name]
    assert refusal(Spelled(body, LOW, **SHAPES), *inputs(), pattern=NAME) in codes
