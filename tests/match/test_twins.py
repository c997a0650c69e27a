"""A tensor that the model casts twice: one value for the matcher, and every reader keeps what it read."""

from __future__ import annotations

import pytest
import torch
from support import HIDDEN, PATTERN, Net, mlp, rms

import fxfuse
from fxfuse import Input, pattern


@pattern("late_tanh")
def late_tanh(x=Input(...)):
    return torch.tanh(x) * 2.0


def cast_again_afterwards(m: Net, y: torch.Tensor) -> torch.Tensor:
    out = mlp(m, rms(m, y.float()))
    return out + torch.tanh(y.float()) * 2.0


def cast_back_twice(m: Net, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.tanh(y.float()) * 2.0
    return wide.to(torch.bfloat16), wide.to(torch.bfloat16) + 1


@pytest.mark.parametrize("order", [["late_tanh", PATTERN], [PATTERN, "late_tanh"]], ids=lambda o: o[0])
@pytest.mark.parametrize("body", [cast_again_afterwards, cast_back_twice])
@torch.no_grad()
def test_whichever_cast_is_seen_first(body, order) -> None:
    model, y = Net(body), torch.randn(3, HIDDEN, dtype=torch.bfloat16)
    patterns = [late_tanh if name == "late_tanh" else name for name in order]
    backend = fxfuse.Backend(inner="eager", on_error="raise", patterns=patterns, on_miss="silent")
    out = torch.compile(model, backend=backend)(y)
    report = fxfuse.reports()[-1]
    assert report.rewritten["late_tanh"] == 1, str(report)
    assert report.rewritten[PATTERN] == (body is cast_again_afterwards), str(report)
    torch.testing.assert_close(out, body(model, y), rtol=0, atol=0)
