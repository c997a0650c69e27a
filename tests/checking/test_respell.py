"""Respellings: each row is tried, each changes the graph, none changes a bit of what it computes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import capture, operands

from fxfuse.checking.judging import same_function
from fxfuse.checking.respell import respell
from fxfuse.checking.spellings import IDENTITIES, ROWS, Row
from fxfuse.view.rules import SEE_THROUGH


def everything(x: Any, y: Any, v: Any, w: Any, W: Any, M: Any, C: Any, n: Any) -> Any:
    """An expression with an op for every row."""
    h = x.float()
    square = h.pow(2) + torch.square(h)
    mean = square.mean(-1, keepdim=True)
    h = h * torch.rsqrt(mean + 0.25) + torch.sqrt(mean)
    h = (w * h).to(x.dtype)
    g = F.linear(h, W)
    first, second = F.linear(h, W, torch.cat([w, w[:4]])).chunk(2, -1)
    act = F.silu(g) + F.gelu(g) + F.gelu(g, approximate="tanh") + F.mish(g)
    low = (h - first.sum(-1, keepdim=True)) / 8.0 * 0.5
    scores = torch.softmax((x @ C.transpose(-1, -2)).float(), -1)
    scores = torch.where(scores > 0, -scores, scores).masked_fill(scores < 0.1, 0.0)
    return act, low, scores, (x @ M.t()), torch.tanh(second.to(torch.float32))


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def tried(request: pytest.FixtureRequest) -> tuple[Any, list[Any], list[tuple[Any, list[str]]]]:
    named = operands(request.param)
    named["w"] = torch.nn.Parameter(named["w"], requires_grad=False)
    gm, live = capture(torch.no_grad()(everything), **named)
    return gm, live, [respell(gm, live, seed, steps=40) for seed in range(60)]


def test_no_respelling_changes_a_bit(tried: Any) -> None:
    gm, live, made = tried
    for other, steps in made:
        rounds = {row.name for rows in ROWS.values() for row in rows if row.rounds}
        exact = not rounds.intersection(step.partition(": ")[2] for step in steps)
        difference = same_function(other, gm, [live])
        assert difference is None or not exact, (difference, steps)


def test_every_row_is_used(tried: Any) -> None:
    gm, _, made = tried
    used = Counter(step.partition(": ")[2] for _, steps in made for step in steps)
    narrow = gm.graph.find_nodes(op="placeholder")[0].meta["example_value"].dtype is torch.bfloat16
    wide_only = {"x * sigmoid(x)", "gelu by its formula", "mish by its formula", "x @ w.t() + b", "addmm"}
    only_low = {"implied widening, written out"}
    rows = {row.name for rows in ROWS.values() for row in rows if row.is_equated}
    unused = rows - set(used) - (wide_only if narrow else only_low) - {"addmm", "linear of matmul", "mean of a cast"}
    assert not unused
    assert {name for name, (op, _) in IDENTITIES.items() if op in SEE_THROUGH} <= set(used)
    assert sum(name.startswith(("method ", "function ")) for name in used) > 20


def test_a_seed_is_a_respelling(tried: Any) -> None:
    gm, live, made = tried
    assert respell(gm, live, 3, steps=40)[1] == made[3][1]
    assert len({tuple(steps) for _, steps in made}) == len(made)


def test_a_wrong_row_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row whose value differs in any bit is undone, also where it differs by rounding in bf16."""
    gm, live = capture(torch.no_grad()(lambda x, w: F.silu(x) * w), *(operands(torch.bfloat16)[k] for k in "xw"))
    wrong = {
        "silu": [
            Row("relu for silu", lambda s, a: s.function(F.relu, a["input"])),
            Row("x * sigmoid(x)", lambda s, a: s.method("mul", a["input"], s.method("sigmoid", a["input"]))),
            Row("the same, rounding", lambda s, a: s.method("mul", a["input"], s.method("sigmoid", a["input"])),
                rounds=True),
            Row("one that fails", lambda s, a: s.method("no_such_method", a["input"])),
        ],
    }  # fmt: skip
    monkeypatch.setattr("fxfuse.checking.respell.ROWS", wrong)
    for seed in range(40):
        other, steps = respell(gm, live, seed)
        assert not {row.name for row in wrong["silu"]}.intersection(step.partition(": ")[2] for step in steps)
        assert same_function(other, gm, [live]) is None
