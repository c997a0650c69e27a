"""The pattern and its kernels. `TRITON_INTERPRET=1 pytest` runs the Triton kernel on the CPU; a GPU runs it as well."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fxfuse_forecasting import kernels
from torch import nn

import fxfuse

PATTERN = "forecasting::gate_add_norm"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEVICE = "cpu" if kernels.INTERPRETED or not torch.cuda.is_available() else "cuda"
KERNELS = ["plain", "triton"] if kernels.INTERPRETED or DEVICE == "cuda" else ["plain"]
GATES = {
    "glu": lambda p: F.glu(p),
    "sigmoid": lambda p: p.chunk(2, -1)[0] * p.chunk(2, -1)[1].sigmoid(),
    "gtu": lambda p: (h := p.tensor_split(2, -1))[0].tanh() * torch.sigmoid(h[1]),
}


class GatedResidual(nn.Module):
    """A gated residual network's layer. ``gate`` takes the packed projection, ``around`` the sum before the norm."""

    def __init__(self, size: int, gate: Any, *, bias: bool = True, around: Any = lambda h: h) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.packed = nn.Linear(size, size), nn.Linear(size, 2 * size)
        self.norm = nn.LayerNorm(size, bias=bias)
        nn.init.normal_(self.norm.weight)
        self.gate, self.around = gate, around

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.gate(self.packed(F.elu(self.up(x))))
        return self.norm(self.around(h + x))


def make(gate: str, dtype: torch.dtype, size: int = 24, **more: Any) -> GatedResidual:
    return GatedResidual(size, GATES[gate], **more).to(DEVICE, dtype).requires_grad_(False)


def rows(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Inputs with outlier channels."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    x[..., ::8] *= 100
    return x.to(DEVICE, dtype)


def options(kernel: str, **more: Any) -> dict[str, Any]:
    return {"add": [PATTERN], "kernels": {PATTERN: kernel}, "on_error": "raise", **more}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_as_close_to_float64_as_eager(kernel: str, gate: str, dtype: torch.dtype, bias: bool) -> None:
    report = fxfuse.verify(make(gate, dtype, bias=bias), (rows(2, 5, 24, dtype=dtype),), options=options(kernel))
    assert report.ok, str(report)
    (site,) = report.sites
    assert (site.kernel, site.variant) == (kernel, {"gate": gate})


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_model(kernel: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    model = make("glu", dtype, size=100)  # no power of two
    exact = copy.deepcopy(model).double()
    compiled = torch.compile(model, backend="fxfuse", options=options(kernel, inner="aot_eager"))
    for count in (3, 7):
        x = rows(count, 100, dtype=dtype)
        want, got, eager = exact(x.double()), compiled(x), model(x)
        assert (got.dtype, got.shape, got.stride()) == (eager.dtype, eager.shape, eager.stride())
        floor = 1e-6 if dtype is torch.float32 else 1e-3
        assert (got - want).norm() <= 2 * (eager - want).norm() + floor * want.norm()
        assert fxfuse.reports()[-1].rewritten["gate_add_norm"] == 1


def test_training_takes_the_kernel_with_a_backward() -> None:
    model = make("sigmoid", torch.float32).requires_grad_(True)
    x = rows(4, 24, dtype=torch.float32)
    model(x).square().sum().backward()
    want = [p.grad for p in model.parameters()]
    model.zero_grad()
    torch.compile(model, backend="fxfuse", options=options("plain", inner="aot_eager"))(x).square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], want)


@pytest.mark.parametrize(
    "case",
    [
        {"around": torch.relu},
        {"around": lambda h: h * 2},
        {"gate": lambda p: p.chunk(2, -1)[1] * p.chunk(2, -1)[0].sigmoid()},
        {"gate": lambda p: p.chunk(2, -1)[0] * p.chunk(2, -1)[0].sigmoid()},
        {"gate": lambda p: p[..., 1:25] * p[..., 24:].sigmoid()},
        {"gate": lambda p: p.chunk(2, -1)[0] * F.silu(p.chunk(2, -1)[1])},
    ],
    ids=["relu inside", "doubled", "halves exchanged", "one half twice", "other borders", "another gate"],
)
def test_what_differs_is_left_alone(case: dict[str, Any]) -> None:
    model = GatedResidual(24, **{"gate": GATES["sigmoid"], **case}).to(DEVICE).requires_grad_(False)
    x = rows(2, 24, dtype=torch.float32)
    report = fxfuse.explain(model, (x,), options={"patterns": [PATTERN], "on_miss": "silent"})
    assert not report.matched
    assert report.sites[0].outcome == "missed"


def test_a_skip_that_is_broadcast_is_refused_by_the_constraint() -> None:
    model = make("glu", torch.float32)
    skip = nn.Parameter(torch.randn(24, device=DEVICE), requires_grad=False)

    def broadcast(x: torch.Tensor) -> torch.Tensor:
        return model.norm(F.glu(model.packed(x)) + skip)

    report = fxfuse.explain(broadcast, (rows(5, 24, dtype=torch.float32),), options={"patterns": [PATTERN]})
    (site,) = report.sites
    assert (site.code, site.reason) == ("CONSTRAINT", "skip must have the leading sizes of packed")


@pytest.mark.skipif("triton" not in KERNELS, reason="needs a GPU, or TRITON_INTERPRET=1")
def test_a_row_that_is_too_long_is_an_error_where_the_kernel_was_named() -> None:
    size = 2 * kernels.LARGEST

    def tail(packed: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(F.glu(packed) + skip, (size,), weight)

    weight = nn.Parameter(torch.ones(size, device=DEVICE), requires_grad=False)
    args = (rows(1, 2 * size, dtype=torch.float32), rows(1, size, dtype=torch.float32))
    with pytest.raises(ValueError, match="needs at most 8192 elements a row; the site has 16384"):
        fxfuse.explain(tail, args, options=options("triton"))
