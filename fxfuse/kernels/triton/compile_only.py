"""Compile every shipped configuration for cards that are not here, and read what each would use of them.

``python -m fxfuse.kernels.triton.compile_only [target ...]`` prints a table and fails where a kernel spills registers,
wants more shared memory than a program may have, or lacks the matrix instructions that it was made for; ``--markdown``
prints the table of docs/kernels.md. No GPU or driver is needed: Triton carries its own assemblers.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import triton
from triton.compiler import ASTSource

from fxfuse.kernels.triton.common import INTERPRETED
from fxfuse.kernels.triton.shipped import TARGETS, Job, Target, jobs

# By the assembly that the compiler writes: PTX, and AMD's.
_MATRIX = {"wgmma": r"\bwgmma\.mma_async", "tcgen05": r"\btcgen05\.mma", "mma": r"\bmma\.sync", "mfma": r"\bv_mfma"}


class Compilable(Protocol):
    """A kernel as one launch would specialise it, for one card."""

    @property
    def target(self) -> Target: ...

    @property
    def num_warps(self) -> int: ...

    @property
    def instruction(self) -> str | None: ...

    def source(self) -> ASTSource: ...


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel uses: registers a thread, bytes spilled (AMD: registers), bytes of shared memory.

    ``matrix``: how often each matrix instruction is in its assembly.
    """

    job: Compilable
    registers: int
    spills: int
    shared: int
    matrix: dict[str, int]
    seconds: float

    @property
    def problem(self) -> str | None:
        """Why this kernel must not ship, or None."""
        if self.spills:
            return f"{self.job}: spills {self.spills}"
        if self.shared > self.job.target.shared_limit:
            return f"{self.job}: {self.shared} bytes of shared memory, at most {self.job.target.shared_limit}"
        meant = self.job.instruction
        if meant is not None and not self.matrix.get(meant):
            return f"{self.job}: no {meant} instruction, but {self.instructions or 'none at all'}"
        return None

    @property
    def instructions(self) -> str:
        """The matrix instructions as text, ``8 wgmma``."""
        return ", ".join(f"{count} {name}" for name, count in self.matrix.items())


def compiled(job: Compilable, **options: Any) -> Any:
    """Triton's compiled kernel for one job, with ``options`` of the target's compiler on top.

    Raises RuntimeError in Triton's interpreter, where there is nothing to compile.
    """
    if INTERPRETED.value:
        raise RuntimeError("TRITON_INTERPRET was set when the kernels were imported, expected it unset to compile them")
    return triton.compile(job.source(), target=job.target.gpu, options={"num_warps": job.num_warps, **options})


def compile_job(job: Compilable, **options: Any) -> Resources:
    """Compile one job as :func:`compiled` does, and measure the result."""
    start = time.perf_counter()
    kernel = compiled(job, **options)
    seconds = time.perf_counter() - start
    used = _of_cubin(kernel.asm["cubin"]) if job.target.is_cuda else _of_amdgcn(kernel.asm["amdgcn"])
    text = kernel.asm["ptx" if job.target.is_cuda else "amdgcn"]
    counts = {name: len(re.findall(pattern, text)) for name, pattern in _MATRIX.items()}
    return Resources(job, *used, kernel.metadata.shared, {n: c for n, c in counts.items() if c}, seconds)


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


def table(used: Iterable[Resources]) -> str:
    """Markdown: for each kernel, dtype and tile the most that any of its cases uses, a column for each card."""
    rows: dict[tuple[str, str, str], dict[str, list[Resources]]] = {}
    for result in used:
        assert isinstance(result.job, Job)
        row = rows.setdefault((result.job.kernel_name, result.job.numbers, result.job.block), {})
        row.setdefault(result.job.target.name, []).append(result)
    names = [target.name for target in TARGETS if any(target.name in row for row in rows.values())]
    lines = ["| kernel | dtype | tile | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]
    for key, row in rows.items():
        lines.append("| " + " | ".join([*key, *(_cell(row.get(name, [])) for name in names)]) + " |")
    return "\n".join(lines)


def _cell(cases: list[Resources]) -> str:
    if not cases:
        return ""
    registers, spills, shared = (max(getattr(c, name) for c in cases) for name in ("registers", "spills", "shared"))
    kinds = dict.fromkeys(name for case in cases for name in case.matrix)
    parts = [f"{registers} regs", f"{shared / 1024:.0f} KiB" if shared else "", f"{spills} spilled" if spills else ""]
    return ", ".join(filter(None, [*parts, *kinds]))


def main(arguments: list[str] | None = None) -> int:
    """Compile everything for the given targets (default: all), print a table, and return 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m fxfuse.kernels.triton.compile_only", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="target", help=", ".join(t.name for t in TARGETS))
    parser.add_argument("--markdown", action="store_true", help="the table of docs/kernels.md, progress to stderr")
    given = parser.parse_args(arguments)
    for name in given.targets:
        if name not in [t.name for t in TARGETS]:
            parser.error(f"unknown target {name!r}, expected one of {', '.join(t.name for t in TARGETS)}")
    out = sys.stderr if given.markdown else sys.stdout
    found = []
    print(f"{'job':<64}{'regs':>5}{'spills':>8}{'shared':>8}{'s':>6}  matrix", file=out)
    for target in TARGETS:
        if given.targets and target.name not in given.targets:
            continue
        for job in jobs(target):
            used = compile_job(job)
            found.append(used)
            numbers = f"{used.registers:>5}{used.spills:>8}{used.shared:>8}{used.seconds:>6.1f}  {used.instructions}"
            print(f"{job!s:<64}{numbers}".rstrip(), file=out, flush=True)
    problems = [used.problem for used in found if used.problem]
    print(f"{len(found)} compiled, {len(problems)} with problems", *problems, sep="\n", file=out)
    if given.markdown:
        print(table(found))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
