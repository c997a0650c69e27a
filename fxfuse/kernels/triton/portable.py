"""A Triton kernel of any pack, compiled for cards that are not here; behind `fxfuse.testing.assert_compiles`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from triton.compiler import ASTSource

from fxfuse.errors import PatternError, unknown
from fxfuse.kernels.triton.compile_only import Resources, compile_job
from fxfuse.kernels.triton.shipped import TARGETS, Target


@dataclass(frozen=True)
class Launch:
    """One kernel with its argument types and constants, for one card. Pointers are taken to be aligned."""

    target: Target
    kernel: Any  # triton.JITFunction
    signature: Mapping[str, str] = field(hash=False)
    constants: Mapping[str, Any] = field(hash=False)
    num_warps: int
    instruction: str | None = None

    def __str__(self) -> str:
        constants = " ".join(f"{name}={value}" for name, value in self.constants.items())
        return f"{self.target.name} {self.kernel.__name__} {constants}"

    def source(self) -> ASTSource:
        names = list(self.kernel.arg_names)
        for name in (*self.signature, *self.constants):
            if name not in names:
                raise PatternError(unknown(f"argument of {self.kernel.__name__}", name, names))
        for name in names:
            if (name in self.signature) == (name in self.constants):
                raise PatternError(f"{self.kernel.__name__}: argument {name!r} has either a type or a constant.")
        types = {name: self.signature.get(name, "constexpr") for name in names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types[name].startswith("*")}
        return ASTSource(self.kernel, types, dict(self.constants), aligned)


def compile_for_every_card(
    kernel: Any, signature: Mapping[str, str], constants: Mapping[str, Any], num_warps: int
) -> dict[str, Resources]:
    """What the kernel uses of each card, by the card's name: sm_80, sm_90, sm_100 and gfx942."""
    return {t.name: compile_job(Launch(t, kernel, signature, constants, num_warps)) for t in TARGETS}
