"""What a measurement was made on: enough to know whether two of them may stand in one table."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch

import fxfuse
from fxfuse import compat, machine
from fxfuse.benchmarks.errors import BenchError

SAME = ("device", "name", "arch", "units", "torch", "triton", "python", "transformers", "inner")
"""What has to be equal for figures to stand in one file."""

_GOVERNOR = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "CUDA_VISIBLE_DEVICES")


def check_device(device: str) -> torch.device:
    """The device, if it can be used here.

    Raises:
        BenchError: it cannot.
    """
    if device == "cuda" and not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise BenchError(
            f"--device cuda: torch sees no CUDA device here (torch {torch.__version__}, {build}); valid: 'cpu'."
        )
    return torch.device(device)


def environment(device: torch.device, inner: str = "inductor") -> dict[str, Any]:
    """The machine, the versions and the settings; ``inner``: what compiles every arm."""
    here = machine.machine_of(device)
    found: dict[str, Any] = {
        "device": here.device,
        "name": here.name,
        "arch": here.arch,
        "units": here.units,
        "memory_bytes": here.memory or _memory(),
        "cache_bytes": machine.cache_bytes(device),
        "inner": inner,
        "cpu": machine.cpu_name(),
        "cpu_threads": torch.get_num_threads(),
        "cpu_cores": os.cpu_count(),
        "governor": _governor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "fxfuse": fxfuse.__version__,
        "torch": torch.__version__,
        "triton": machine.triton_release(),
        "transformers": _version("transformers"),
        "liger_kernel": _version("liger_kernel"),
        "cuda": torch.version.cuda,
        "bf16_instructions": compat.cpu_multiplies_bf16() if here.device == "cpu" else None,
        "fp32_matmul": torch.get_float32_matmul_precision(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    if here.device == "cuda":
        found["card"] = _card()
    return found


def differing(had: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """In what another environment differs so far that its figures belong elsewhere, or None."""
    odd = next((key for key in SAME if had.get(key) != now.get(key)), None)
    return None if odd is None else f"{odd} was {had.get(odd)!r} and is {now.get(odd)!r}"


def slug(found: Mapping[str, Any]) -> str:
    """The name of the results file of an environment, without its ending."""
    units = f"{found['units']} threads" if found["device"] == "cpu" else found["arch"]
    words = [found["name"], units, "torch", str(found["torch"]).partition("+")[0]]
    words += [found["inner"]] if found["inner"] != "inductor" else []
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(map(str, words)).lower()).strip("-")


def load() -> float:
    """What else the machine does: processes that want to run, over the last minute."""
    return round(os.getloadavg()[0], 2)


def _governor() -> str | None:
    with contextlib.suppress(OSError), open(_GOVERNOR, encoding="ascii") as file:
        return file.read().strip()
    return None


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _card() -> dict[str, str]:
    """Driver, clocks and limits, where the vendor's tool tells."""
    names = ("driver_version", "clocks.max.sm", "clocks.max.memory", "power.limit", "persistence_mode")
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    values = [value.strip() for value in done.stdout.split(",")]
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}
