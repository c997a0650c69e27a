"""A kernel is fed an operand in the layout in which the site reads it, so that its result lies as the site's does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxfuse


class Turned(nn.Module):
    """A norm of a transposed tensor, made contiguous or not, whose result is viewed, or gives its strides away."""

    def __init__(self, contiguous: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(16))
        self.contiguous = contiguous

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        h = (x.contiguous() if self.contiguous else x).float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        h = self.weight * h.to(x.dtype)
        return h.view(2, -1) if self.contiguous else h


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("contiguous", [True, False])
def test_a_turned_operand(contiguous: bool, dynamic: bool, dtype: torch.dtype) -> None:
    model, x = Turned(contiguous).to(dtype).requires_grad_(False), torch.randn(2, 3, 5, 16, dtype=dtype)
    options = {"patterns": ["rms_norm"], "expect_rewritten": {"rms_norm": 1}, "on_error": "raise", "inner": "aot_eager"}
    found = torch.compile(model, backend="fxfuse", options=options, dynamic=dynamic, fullgraph=True)(x)
    expected = model(x)
    torch.testing.assert_close(found, expected)
    assert found.stride() == expected.stride()


def test_an_exported_program() -> None:
    model, x = Turned(True), torch.randn(2, 3, 5, 16)
    program = torch.export.export(model, (x,))
    assert fxfuse.rewrite(program, options={"patterns": ["rms_norm"]}).rewritten["rms_norm"] == 1
    torch.testing.assert_close(program.module()(x), model(x))
