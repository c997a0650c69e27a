"""What dividing a graph costs on each call, and what compiling costs for each C++ kernel: the two sides of a border."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

LAYERS, WIDTH, CALLS, ROUNDS = 30, 64, 40, 5


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / 16)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            h = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
            x = x + torch.tanh(h @ self.weight)
        return x


class _Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer() for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def call_cost() -> dict[str, float]:
    """Microseconds that a region's call adds, and that an operation takes which runs as written; seconds of compiling a
    C++ kernel."""
    import fxfuse

    with torch.no_grad():
        model, x = _Stack().eval(), torch.randn(1, WIDTH)
        arms: dict[str, Callable[[], Any]] = {}
        for reuse in ("auto", "off"):
            backend = fxfuse.Backend(reuse=reuse, patterns=[], on_miss="silent")
            arms[reuse] = _bound(torch.compile(_clone(model), backend=backend), x)
        arms["chain"] = lambda: _chain(x)
        taken: dict[str, list[float]] = {name: [] for name in arms}
        for run in arms.values():
            run()
        for _ in range(ROUNDS):
            for name, run in arms.items():
                taken[name].append(_microseconds(run))
        middle = {name: statistics.median(times) for name, times in taken.items()}
        # the fastest, since a machine that is busy only ever adds
        best = {name: min(times) for name, times in taken.items()}
        (record,) = next(report.reuse for report in fxfuse.reports() if report.reuse[0].repeated)
        calls = sum(region.copies for region in record.regions)
        return {
            "region_call_us": (best["auto"] - best["off"]) / (calls - 1),
            "region_call_us_median": (middle["auto"] - middle["off"]) / (calls - 1),
            "operation_us": best["chain"] / _CHAIN,
            "kernel_seconds": _kernel_seconds(),
        }


def _clone(model: nn.Module) -> nn.Module:
    other = _Stack().eval()
    other.load_state_dict(model.state_dict())
    return other


def _bound(run: Callable[..., Any], x: Tensor) -> Callable[[], Any]:
    return lambda: run(x)


_CHAIN = 64


def _chain(x: Tensor) -> Tensor:
    for _ in range(_CHAIN):
        x = x * 0.5
    return x


def _microseconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        run()
    return (time.perf_counter() - start) / CALLS * 1e6


def _kernel_seconds() -> float:
    """The C++ compiler's part, from the difference of two graphs: one kernel, and five."""
    import os

    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    weight, x = torch.randn(WIDTH, WIDTH), torch.randn(4, WIDTH)

    def chain(kernels: int) -> float:
        def forward(x: Tensor) -> Tensor:
            for i in range(kernels):
                x = torch.tanh(x * (1.5 + i)) @ weight
            return x

        with tempfile.TemporaryDirectory() as folder:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
            torch._dynamo.reset()
            start = time.perf_counter()
            torch.compile(forward)(x)
            return time.perf_counter() - start

    chain(1)
    return (chain(5) - chain(1)) / 4


def line(found: dict[str, float]) -> str:
    """The figures as a sentence."""
    return (
        f"A region's call adds {found['region_call_us']:.0f} microseconds to the graph's (fastest of {ROUNDS} rounds; "
        f"by the medians {found['region_call_us_median']:.0f}); a small operation that runs as written takes "
        f"{found['operation_us']:.1f} microseconds; compiling one more C++ kernel takes "
        f"{found['kernel_seconds']:.2f} s."
    )
