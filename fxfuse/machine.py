"""What this machine is: the devices that kernels run on, told apart as far as a measurement depends on it."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

from fxfuse.compat import cpu_multiplies_bf16

_TRITON = ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm", "pytorch-triton-xpu", "triton-windows")
"""The distributions that bring the module."""

_CPU_INFO = "/proc/cpuinfo"
_MEMORY_INFO = "/proc/meminfo"
_CACHES = "/sys/devices/system/cpu/cpu0/cache"
_USUAL_CACHE = 32 << 20
"""Bytes of a last-level cache that the system does not tell of."""


@dataclass(frozen=True)
class Machine:
    """A device as measurements know it.

    Attributes:
        device: torch's device type.
        name: the model, such as ``"NVIDIA H200"``.
        arch: what runs the same code: ``"sm_90"``, ``"gfx942"``, ``"x86_64 AVX512 bf16"``.
        units: multiprocessors, or the CPU threads that torch uses.
        memory: bytes of memory of a card; 0 for a CPU.
    """

    device: str
    name: str
    arch: str
    units: int
    memory: int = 0

    def __str__(self) -> str:
        of = f"{self.units} thread{'s' if self.units != 1 else ''}" if self.device == "cpu" else self.arch
        return f"{self.name} ({of})"


def machine_of(device: torch.device | str) -> Machine:
    """The machine behind a device."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_available():
        return _card(device.index if device.index is not None else torch.cuda.current_device())
    if device.type == "cpu":
        return Machine("cpu", cpu_name(), _cpu_arch(), torch.get_num_threads())
    return Machine(device.type, device.type, "unknown", 0)


@functools.cache
def _card(index: int) -> Machine:
    properties: Any = torch.cuda.get_device_properties(index)
    arch = str(getattr(properties, "gcnArchName", "")).partition(":")[0] if torch.version.hip else ""
    arch = arch or f"sm_{properties.major}{properties.minor}"
    return Machine("cuda", properties.name, arch, properties.multi_processor_count, properties.total_memory)


def device_types() -> frozenset[str]:
    """The kinds of devices that are here."""
    found = torch.accelerator.current_accelerator()
    return frozenset({"cpu"} if found is None else {"cpu", found.type})


def capability(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of a CUDA device; None for any other."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability(device)


def shared_memory(device: torch.device) -> int | None:
    """The bytes of shared memory that one block can have on a CUDA device; None for any other."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    properties: Any = torch.cuda.get_device_properties(device)
    found = getattr(properties, "shared_memory_per_block_optin", 0) or properties.shared_memory_per_block
    return int(found)


@functools.cache
def triton_version() -> tuple[int, ...] | None:
    """The version of Triton as numbers, without importing it; None where there is none."""
    text = triton_release()
    return None if text is None else tuple(int(n) for n in re.findall(r"\d+", text.partition("+")[0])[:3])


@functools.cache
def triton_release() -> str | None:
    """The version of Triton as its distribution spells it; None where there is none."""
    if importlib.util.find_spec("triton") is None:
        return None
    for name in _TRITON:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    import triton  # of no known distribution: only the module itself can tell

    return str(triton.__version__)


@functools.cache
def cpu_name() -> str:
    """The CPU's model name, as the system tells it."""
    found = _first_match(_CPU_INFO, r"^model name\s*:\s*(.+)$")
    return found or platform.processor() or platform.machine()


def _cpu_arch() -> str:
    words = [platform.machine(), torch.backends.cpu.get_cpu_capability(), "bf16" if cpu_multiplies_bf16() else ""]
    return " ".join(word for word in words if word)


def cache_bytes(device: torch.device | str) -> int:
    """The size of the device's last-level cache; a usual one where nobody tells."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_available():
        properties: Any = torch.cuda.get_device_properties(device)
        return int(getattr(properties, "L2_cache_size", 0)) or _USUAL_CACHE
    sizes = [_cache_size(level) for level in range(5)]
    return max(sizes) or _USUAL_CACHE


def free_bytes(device: torch.device | str) -> int:
    """The memory that is free on the device."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.mem_get_info(device)[0]
    found = _first_match(_MEMORY_INFO, r"^MemAvailable:\s*(\d+) kB$")
    return int(found) << 10 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cache_size(index: int) -> int:
    found = _first_match(f"{_CACHES}/index{index}/size", r"^(\d+)K$")
    return int(found) << 10 if found else 0


def _first_match(path: str, pattern: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="ignore") as file:
            found = re.search(pattern, file.read(), re.MULTILINE)
    except OSError:
        return None
    return found.group(1).strip() if found else None
