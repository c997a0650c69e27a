"""Compile every shipped configuration for cards that are not here, and read what each would use of them.

``python -m fxfuse.kernels.triton.compile_only [target ...]`` prints a table and fails where a kernel spills registers
or wants more shared memory than a program may have. No GPU or driver is needed: Triton carries its own assemblers.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fxfuse.kernels.triton import norm_gated_mlp_decode as decode


@dataclass(frozen=True)
class Target:
    """A card: what Triton compiles for, and the shared memory in bytes that one program may have."""

    gpu: GPUTarget
    shared_limit: int

    @property
    def name(self) -> str:
        return f"sm_{self.gpu.arch}" if self.gpu.backend == "cuda" else str(self.gpu.arch)


TARGETS = (
    Target(GPUTarget("cuda", 80, 32), 163 * 1024),
    Target(GPUTarget("cuda", 90, 32), 227 * 1024),
    Target(GPUTarget("cuda", 100, 32), 227 * 1024),
    Target(GPUTarget("hip", "gfx942", 64), 64 * 1024),
)

_POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


class Compilable(Protocol):
    """A kernel as one launch would specialise it, for one card."""

    @property
    def target(self) -> Target: ...

    @property
    def num_warps(self) -> int: ...

    def source(self) -> ASTSource: ...


@dataclass(frozen=True)
class Job:
    """One compile: a kernel, its constants, and the arguments as a launch would specialise them.

    ``case`` says which: ``plain`` has contiguous, aligned tensors; ``full`` adds biases, an fp32 norm weight, strides
    for ``x`` and the costliest activation; ``odd`` has any strides and no alignment on top. Others are variants of
    ``plain``. ``pointers`` overrides dtypes by argument name.
    """

    target: Target
    kernel: Any  # triton.JITFunction
    dtype: torch.dtype
    case: str
    num_warps: int
    constants: dict[str, Any] = field(hash=False)
    pointers: dict[str, str] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        block = "x".join(str(self.constants[n]) for n in ("BLOCK_M", "BLOCK_N", "BLOCK_K") if n in self.constants)
        block = block or str(self.constants["BLOCK"])
        words = [self.target.name, self.kernel.__name__, str(self.dtype).removeprefix("torch."), block, self.case]
        return " ".join([*words, *filter(None, [self.constants.get("PRECISION")])])

    def source(self) -> ASTSource:
        signature: dict[str, str] = {}
        constants = dict(self.constants)
        divisible = []
        for i, name in enumerate(self.kernel.arg_names):
            general = self.case == "odd" or (self.case == "full" and name in _GENERAL_WHERE_FULL)
            if name in constants:
                signature[name] = "constexpr"
            elif name in _UNIT_STRIDES and not general:
                signature[name], constants[name] = "constexpr", 1
            elif name == "eps":
                signature[name] = "fp32"
            else:
                signature[name] = self.pointers.get(name, _POINTERS[self.dtype]) if name.endswith("_ptr") else "i32"
                if name not in ("rows", "splits") and not general:
                    divisible.append(i)
        return ASTSource(self.kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in divisible})


_UNIT_STRIDES = ("x_k", "scale_k", "gate_k", "up_k", "gate_bias_n", "up_bias_n", "down_n", "bias_o")
_GENERAL_WHERE_FULL = ("x_ptr", "x_m", "x_k", "scale_k", "gate_bias_n", "up_bias_n", "bias_o")


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel uses: registers a thread, bytes spilled (AMD: registers), bytes of shared memory."""

    job: Compilable
    registers: int
    spills: int
    shared: int
    seconds: float

    @property
    def problem(self) -> str | None:
        """Why this kernel must not ship, or None."""
        if self.spills:
            return f"{self.job}: spills {self.spills}"
        if self.shared > self.job.target.shared_limit:
            return f"{self.job}: {self.shared} bytes of shared memory, at most {self.job.target.shared_limit}"
        return None


def jobs(target: Target) -> Iterator[Job]:
    """Every shipped tile, dtype and case for one target, in a fixed order."""
    fast = "tf32" if target.gpu.backend == "cuda" else "ieee"
    for (itemsize, _), tiles in decode.CONFIGS.items():
        for dtype in decode.DTYPES:
            if dtype.itemsize != itemsize:
                continue
            for precision in dict.fromkeys([fast if itemsize == 2 else "ieee", fast]):
                for tile in (tiles.wide, tiles.narrow):
                    for act in decode.ACTS:
                        yield _gate_up_job(target, dtype, tile, precision, _CASES[act], act)
                    for case in ("plain", "full", "split"):
                        yield _down_job(target, dtype, tile, precision, case)
                yield _gate_up_job(target, dtype, tiles.unaligned, precision, "odd", "gelu")
                yield _down_job(target, dtype, tiles.unaligned, precision, "odd")
    for dtype in decode.DTYPES:
        for case in ("plain", "odd"):
            constants = {"BIAS": case == "odd", "BLOCK": decode.REDUCE_BLOCK}
            yield Job(target, decode.reduce_kernel, dtype, case, 4, constants, {"parts_ptr": "*fp32"})


# The error function takes the most registers, so it stands for the fullest case.
_CASES = {"silu": "plain", "gelu": "full", "gelu_tanh": "gelu_tanh", "relu": "relu"}


def _gate_up_job(target: Target, dtype: torch.dtype, tile: decode.Tile, precision: str, case: str, act: str) -> Job:
    full = case in ("full", "odd")
    constants = {"OFFSET": full, "ACT": act, "GATE_BIAS": full, "UP_BIAS": full, "PRECISION": precision}
    constants |= _blocks(tile)
    pointers = {"scale_ptr": "*fp32"} if full else {}
    return Job(target, decode.gate_up_kernel, dtype, case, tile.num_warps, constants, pointers)


def _down_job(target: Target, dtype: torch.dtype, tile: decode.Tile, precision: str, case: str) -> Job:
    constants = {"BIAS": case in ("full", "odd"), "PRECISION": precision, **_blocks(tile)}
    pointers = {"out_ptr": "*fp32"} if case == "split" else {}
    return Job(target, decode.down_kernel, dtype, case, tile.num_warps, constants, pointers)


def _blocks(tile: decode.Tile) -> dict[str, Any]:
    """The tile's constants alone: the number of warps is an option of the compiler."""
    return {name: value for name, value in decode.launch_meta(tile).items() if name.isupper()}


def compiled(job: Compilable, **options: Any) -> Any:
    """Triton's compiled kernel for one job, with ``options`` of the target's compiler on top.

    Raises RuntimeError in Triton's interpreter, where there is nothing to compile.
    """
    if decode.INTERPRETED.value:
        raise RuntimeError("TRITON_INTERPRET was set when the kernels were imported, expected it unset to compile them")
    return triton.compile(job.source(), target=job.target.gpu, options={"num_warps": job.num_warps, **options})


def compile_job(job: Compilable, **options: Any) -> Resources:
    """Compile one job as :func:`compiled` does, and measure the result."""
    start = time.perf_counter()
    kernel = compiled(job, **options)
    seconds = time.perf_counter() - start
    used = _of_cubin(kernel.asm["cubin"]) if job.target.gpu.backend == "cuda" else _of_amdgcn(kernel.asm["amdgcn"])
    return Resources(job, *used, kernel.metadata.shared, seconds)


def _of_cubin(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of local memory): the kernels have no arrays of their own, so a stack is spilled registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (_number(rf"\b{name}:(\d+)", text) for name in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def _of_amdgcn(text: str) -> tuple[int, int]:
    spills = _number(r"\.vgpr_spill_count:\s*(\d+)", text) + _number(r"\.sgpr_spill_count:\s*(\d+)", text)
    return _number(r"\.vgpr_count:\s*(\d+)", text), spills


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"the assembler's report has no {pattern}:\n{text[-2000:]}")
    return int(match[1])


def main(arguments: list[str] | None = None) -> int:
    """Compile everything for the given targets (default: all), print a table, and return 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m fxfuse.kernels.triton.compile_only", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="target", help=", ".join(t.name for t in TARGETS))
    given = parser.parse_args(arguments).targets
    for name in given:
        if name not in [t.name for t in TARGETS]:
            parser.error(f"unknown target {name!r}, expected one of {', '.join(t.name for t in TARGETS)}")
    problems = []
    print(f"{'job':<72}{'regs':>5}{'spills':>8}{'shared':>8}{'s':>6}")
    count = 0
    for target in TARGETS:
        if given and target.name not in given:
            continue
        for job in jobs(target):
            used = compile_job(job)
            count += 1
            print(f"{job!s:<72}{used.registers:>5}{used.spills:>8}{used.shared:>8}{used.seconds:>6.1f}", flush=True)
            if used.problem:
                problems.append(used.problem)
    print(f"{count} compiled, {len(problems)} with problems", *problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
