"""What every interpreted test of a kernel shares: inputs, the error contract, poisoned memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
import triton

if not triton.knobs.runtime.interpret:
    pytest.fail("TRITON_INTERPRET must be set before triton is imported", pytrace=False)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = (BF16, FP16, FP32)
FLOOR = {BF16: 1e-3, FP16: 1e-3, FP32: 1e-6}
EPS = 1e-6
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda g: F.gelu(g, approximate="tanh"),
    "relu": F.relu,
}


def named(cases: Sequence[tuple]) -> list:
    """The cases as parameters with readable ids, and behind them two of five seeds, which the cases share out."""
    return [
        pytest.param(*case, (i % 5, (i + 2) % 5), id="-".join(str(part).removeprefix("torch.") for part in case))
        for i, case in enumerate(cases)
    ]


class Random:
    """Normal tensors out of one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator) * scale

    def rows(self, rows: int, hidden: int, outliers: bool = True) -> torch.Tensor:
        """``[rows, hidden]``, with every fiftieth channel, and at least one, a hundred times larger."""
        x = self.normal(rows, hidden)
        if outliers:
            x[:, torch.randperm(hidden, generator=self.generator)[: max(1, hidden // 50)]] *= 100
        return x


def normed(x: torch.Tensor, weight: torch.Tensor | None, norm: str) -> torch.Tensor:
    """RMSNorm as a model's own code has it, with its roundings; in float64 where ``x`` is."""
    h = x if x.dtype == torch.float64 else x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)
    if norm == "none":
        return h.to(x.dtype)
    if norm == "early":
        return weight * h.to(x.dtype)
    if norm == "late":
        return (weight.to(h.dtype) * h).to(x.dtype)
    return (h * (1.0 + weight.to(h.dtype))).to(x.dtype)


def errors(result: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """(maximum, RMS) of the error, relative to the reference's."""
    difference = result.double() - reference
    return (
        (difference.abs().max() / reference.abs().max()).item(),
        (difference.square().mean().sqrt() / reference.square().mean().sqrt()).item(),
    )


def check(result: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    """The contract of the design: at most twice eager's error against float64, plus a floor."""
    assert exact.dtype == torch.float64
    assert (result.dtype, result.shape) == (eager.dtype, eager.shape)
    assert result.is_contiguous()
    assert result.isfinite().all()
    bounds = [2 * e + FLOOR[dtype] for e in errors(eager, exact)]
    for name, error, bound in zip(("maximum", "RMS"), errors(result, exact), bounds, strict=True):
        assert error <= bound, f"{name} error {error:.2e}, at most {bound:.2e} (2x eager's + {FLOOR[dtype]})"


def wide(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.double()


def skewed(matrix: torch.Tensor) -> torch.Tensor:
    """The same values, misaligned by one element, in rows that NaN lies between."""
    rows, columns = matrix.shape
    wider = matrix.new_full((rows, columns + 3), float("nan"))
    wider[:, 1 : columns + 1] = matrix
    return wider[:, 1 : columns + 1]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """torch fills every new allocation with NaN, so an element that no program writes fails ``check``."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
