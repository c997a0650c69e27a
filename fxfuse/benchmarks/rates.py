"""What the machine itself can do: the rates of a copy and of a square matmul, as measured, to hold figures against."""

from __future__ import annotations

import math

import torch

from fxfuse import machine
from fxfuse.tuning.timing import TIMES_THE_CACHE, Bench

MATMUL = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = 256 << 20


def copy_rate(device: torch.device, seconds: float = 2.0) -> float:
    """Bytes read and written per second when a tensor is copied that no cache holds."""
    cache = machine.cache_bytes(device)
    pairs = max(2, math.ceil(TIMES_THE_CACHE * cache / (2 * COPY_BYTES)))
    made = [torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device) for _ in range(2 * pairs)]

    def copy(number: int) -> None:
        made[2 * number].copy_(made[2 * number + 1])

    arm = Bench(seconds=seconds).arms({"copy": copy}, pairs, device)["copy"]
    return 2 * COPY_BYTES / (arm.ms / 1e3)


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 2.0) -> float:
    """Floating-point operations per second of a square matmul."""
    size = MATMUL[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)

    def multiply(_: int) -> None:
        torch.matmul(a, b, out=out)

    with torch.no_grad():
        arm = Bench(seconds=seconds).arms({"matmul": multiply}, 2, device)["matmul"]
    return 2 * size**3 / (arm.ms / 1e3)
