"""The record of this machine: plain data, gathered without compiling or changing anything."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import torch

import fxfuse
from fxfuse import compat, library, machine, results
from fxfuse.errors import first_line
from fxfuse.kernels import Kernel, SiteFacts, kernels_for
from fxfuse.results import Versions

FURTHER = ("transformers", "numpy", "networkx", "rich")
"""Distributions that fxfuse uses where they are, beside torch and Triton."""

RUNS, CANNOT, BROKEN = "runs", "cannot run", "broken"


def diagnose() -> dict[str, Any]:
    """Everything that `fxfuse doctor` tells. ``problems``: what should work here and does not, as sentences."""
    with _quiet():
        patterns = _patterns()
    found: dict[str, Any] = {
        "versions": _versions(),
        "cpu": _cpu(),
        "cards": _cards(),
        "packs": _packs(),
        "patterns": patterns,
        "results": _results(),
    }
    found["problems"] = list(_problems(found))
    return found


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "fxfuse": fxfuse.__version__,
        "torch": torch.__version__,
        "CUDA of torch": torch.version.cuda,
        "ROCm of torch": torch.version.hip,
        "triton": machine.triton_release(),
        "Python": platform.python_version(),
    }
    for name in FURTHER:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _cpu() -> dict[str, Any]:
    here = machine.machine_of("cpu")
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    return {
        "name": here.name,
        "arch": here.arch,
        "threads": here.units,
        "multiplies bf16": compat.cpu_multiplies_bf16(),
        "last-level cache, MiB": machine.cache_bytes("cpu") >> 20,
        "C++ compiler": compiler,
    }


def _cards() -> list[dict[str, Any]]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [_card(torch.device("cuda", index)) for index in range(count)]


def _card(device: torch.device) -> dict[str, Any]:
    here = machine.machine_of(device)
    return {
        "device": str(device),
        "name": here.name,
        "arch": here.arch,
        "capability": ".".join(map(str, machine.capability(device) or ())),
        "multiprocessors": here.units,
        "memory, MiB": here.memory >> 20,
        "shared memory of a block": machine.shared_memory(device),
        "last-level cache, MiB": machine.cache_bytes(device) >> 20,
    }


def _packs() -> dict[str, dict[str, Any]]:
    known = library.all_patterns()
    return {
        name: {"module": module, "patterns": sum(full.startswith(f"{name}::") for full in known), "error": error}
        for name, (module, error) in library.packs().items()
    }


# --- patterns and kernels ---------------------------------------------------------------------------------------------


def _patterns() -> dict[str, dict[str, Any]]:
    active = set(library.defaults())
    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(len(_cards())))]
    sites = {str(device): _facts(device) for device in devices}
    return {
        full: {
            "active": pattern in active,
            "kernels": {
                name: {
                    "default": made.default,
                    "backward": made.backward is not None,
                    "devices": {device: dict(zip(("state", "why"), _state(made, f), strict=True))
                                for device, f in sites.items()},
                }
                for name, made in sorted(kernels_for(pattern).items())
            },
        }
        for full, pattern in library.all_patterns().items()
    }  # fmt: skip


def _facts(device: torch.device) -> SiteFacts:
    """A site on a device, of which nothing else is known."""
    return SiteFacts(
        device=device.type,
        capability=machine.capability(device),
        dtype=None,
        rows=1,
        variant={},
        present=frozenset(),
        symbolic_scalars=frozenset(),
        needs_grad=False,
        shared_memory=machine.shared_memory(device),
        triton=machine.triton_version(),
    )


def _state(made: Kernel, facts: SiteFacts) -> tuple[str, str]:
    """Whether a kernel can run on a device, and what it further asks of a site, or why it cannot."""
    problem = made.requires.unmet_by_machine(facts)
    if problem is not None:
        return CANNOT, problem.replace("the site is on", "this is")
    if made.unloadable is not None:
        return BROKEN, made.unloadable
    try:
        made.register_op()
    except Exception as error:  # whatever importing Triton and compiling its decorators may raise
        return BROKEN, first_line(error)
    return RUNS, ", ".join(_asks(made))


def _asks(made: Kernel) -> Iterator[str]:
    requires = made.requires
    if requires.dtypes is not None:
        yield " ".join(str(dtype).removeprefix("torch.") for dtype in requires.dtypes)
    if requires.rows is not None:
        yield f"{requires.rows[0]} to {requires.rows[1]} rows"
    for name, labels in requires.variants:
        yield f"{name}={'|'.join(sorted(labels))}"
    for name, alignment in requires.alignment:
        yield f"{name or 'operands'} aligned to {alignment} bytes"
    if requires.when is not None:
        yield "a condition of its own"
    if made.derive:
        yield f"derives {', '.join(f'{name} = {transform.describe()}' for name, transform in made.derive)}"


# --- results ----------------------------------------------------------------------------------------------------------


def _results() -> dict[str, Any]:
    known = results.current()
    folder = results.folder()
    return {
        "folder": folder,
        "writable": _writable(folder),
        "entries": len(known.entries),
        "of other versions": len(known.entries) - len(known.usable),
        "of this machine": sum(_is_here(entry) for entry in known.usable),
        "problems": list(known.problems),
    }


def _is_here(entry: results.Entry) -> bool:
    device = entry.machine.device
    if device == "cuda" and not torch.cuda.is_available():
        return False
    return entry.machine == machine.machine_of(device) and entry.versions.hold_for(Versions.here())


def _writable(folder: str) -> bool:
    """Whether the folder, or the nearest one above it that is there, can be written to."""
    while not os.path.exists(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def _problems(found: dict[str, Any]) -> Iterator[str]:
    for name, pack in found["packs"].items():
        if pack["error"]:
            yield f"pack {name!r} ({pack['module']}) cannot be loaded: {pack['error']}"
    for full, pattern in found["patterns"].items():
        for name, made in pattern["kernels"].items():
            broken = {d["why"] for d in made["devices"].values() if d["state"] == BROKEN}
            yield from (f"kernel {name!r} of {full} should run here: {why}" for why in sorted(broken))
    yield from (f"results are not read: {problem}" for problem in found["results"]["problems"])
    if not found["results"]["writable"]:
        yield f"results cannot be written to {found['results']['folder']!r}"
    if found["cpu"]["C++ compiler"] is None:
        yield "Inductor finds no C++ compiler for CPU code; install g++, or set CXX"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What is a row of the record is no warning beside it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fxfuse")
        yield
