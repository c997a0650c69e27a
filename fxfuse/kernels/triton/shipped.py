"""Every configuration that is shipped, as compiles: each kernel with each tile, dtype and precision, in a few cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fxfuse.kernels.triton import gated_mlp_prefill as prefill
from fxfuse.kernels.triton import norm_gated_mlp_decode as mlp
from fxfuse.kernels.triton import norm_linears_decode as linears
from fxfuse.kernels.triton import rms_norm
from fxfuse.kernels.triton.common import DTYPES
from fxfuse.kernels.triton.tiles import CONFIGS, Tile, launch_meta


@dataclass(frozen=True)
class Target:
    """A card: what Triton compiles for, and the shared memory in bytes that one program may have."""

    gpu: GPUTarget
    shared_limit: int

    @property
    def name(self) -> str:
        return f"sm_{self.gpu.arch}" if self.is_cuda else str(self.gpu.arch)

    @property
    def is_cuda(self) -> bool:
        return self.gpu.backend == "cuda"

    @property
    def instruction(self) -> str:
        """The matrix instruction of large tiles: Hopper has one for warpgroups, Blackwell one for tensor memory."""
        return {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05", "gfx942": "mfma"}[self.name]

    @property
    def has_descriptors(self) -> bool:
        """Whether loads through tensor descriptors go to a copy engine (TMA)."""
        return self.is_cuda and int(self.gpu.arch) >= 90


TARGETS = (
    Target(GPUTarget("cuda", 80, 32), 163 * 1024),
    Target(GPUTarget("cuda", 90, 32), 227 * 1024),
    Target(GPUTarget("cuda", 100, 32), 227 * 1024),
    Target(GPUTarget("hip", "gfx942", 64), 64 * 1024),
)

_POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
_COUNTS = ("rows", "splits")  # neither says anything of alignment
# What may have any stride or alignment in the fullest case, where the weights are well-laid.
_VECTORS = ("scale_k", "weight_k", "gate_bias_n", "up_bias_n", "q_bias_n", "k_bias_n", "v_bias_n", "bias_o")
_ROWS = ("x_ptr", "x_m", "x_k", "residual_ptr", "residual_m", "residual_k", "residual_o")


def _is_unit_stride(name: str) -> bool:
    """Whether a contiguous operand has 1 for this argument: strides are called operand_dimension."""
    operand, _, dimension = name.rpartition("_")
    return (operand, dimension) in _UNIT or (operand.endswith("bias") and dimension in ("n", "o"))


_UNIT = {(operand, "k") for operand in ("x", "scale", "weight", "residual", "gate", "up", "q", "k", "v", "w")}
_UNIT |= {("down", "n"), ("residual", "o")}


@dataclass(frozen=True)
class Job:
    """One compile: a kernel, its constants, and the arguments as a launch would specialise them.

    ``case`` says which: ``plain`` has contiguous, aligned tensors; ``full`` adds biases, an fp32 norm weight, strides
    for ``x`` and the costliest activation; ``odd`` has any strides and no alignment on top. Others are variants of
    ``plain``. ``pointers`` overrides dtypes by argument name; ``general`` are the arguments that have any stride and
    alignment where the case is ``full``. ``instruction``: the matrix instruction that is meant.
    """

    target: Target
    kernel: Any  # triton.JITFunction
    dtype: torch.dtype
    case: str
    num_warps: int
    constants: dict[str, Any] = field(hash=False)
    pointers: dict[str, str] = field(default_factory=dict, hash=False)
    instruction: str | None = None
    general: tuple[str, ...] = _VECTORS + _ROWS

    @property
    def kernel_name(self) -> str:
        return self.kernel.__name__.removesuffix("_kernel")

    @property
    def block(self) -> str:
        """The tile, in rows x weight rows x elements of a step."""
        sizes = [str(self.constants[n]) for n in ("BLOCK_M", "BLOCK_N", "BLOCK_K") if n in self.constants]
        return "x".join(sizes) or str(self.constants["BLOCK"])

    @property
    def numbers(self) -> str:
        """The dtype, and the precision of the products where fp32 leaves a choice."""
        name = str(self.dtype).removeprefix("torch.")
        choice = self.dtype == torch.float32 and "PRECISION" in self.constants
        return f"{name} {self.constants['PRECISION']}" if choice else name

    def __str__(self) -> str:
        return " ".join([self.target.name, self.kernel_name, self.numbers, self.block, self.case])

    def source(self) -> ASTSource:
        signature: dict[str, str] = {}
        constants = dict(self.constants)
        divisible = []
        for i, name in enumerate(self.kernel.arg_names):
            general = self.case == "odd" or (self.case == "full" and name in self.general)
            if name in constants:
                signature[name] = "constexpr"
            elif _is_unit_stride(name) and not general:
                signature[name], constants[name] = "constexpr", 1
            elif name == "eps":
                signature[name] = "fp32"
            else:
                signature[name] = self.pointers.get(name, _POINTERS[self.dtype]) if name.endswith("_ptr") else "i32"
                if name not in _COUNTS and not general:
                    divisible.append(i)
        return ASTSource(self.kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in divisible})


def jobs(target: Target) -> Iterator[Job]:
    """Every shipped tile, dtype and case for one target, in a fixed order."""
    for dtype in DTYPES:
        yield from _row_jobs(target, dtype)
        for precision in _precisions(target, dtype):
            for (itemsize, _), tiles in CONFIGS.items():
                if itemsize != dtype.itemsize:
                    continue
                for tile in dict.fromkeys((tiles.wide, tiles.narrow)):
                    for case in ("plain", "full"):
                        yield _gate_up(target, dtype, tile, precision, case)
                    for case in ("plain", "full", "split"):
                        yield _down(target, dtype, tile, precision, case)
                    for case in ("plain", "full"):
                        yield _linears(target, dtype, tile, precision, case)
                for tile in dict.fromkeys((tiles.wide, tiles.unaligned)):
                    yield _gate_up(target, dtype, tile, precision, "bare")
                for make in (_gate_up, _down, _linears):
                    yield make(target, dtype, tiles.unaligned, precision, "odd")
            yield from _prefill_jobs(target, dtype, precision)
        for case in ("plain", "full", "odd"):
            constants = {"BIAS": case != "plain", "RESIDUAL": case != "plain", "BLOCK": mlp.REDUCE_BLOCK}
            yield Job(target, mlp.reduce_kernel, dtype, case, 4, constants, {"parts_ptr": "*fp32"})


def _precisions(target: Target, dtype: torch.dtype) -> tuple[str, ...]:
    if not target.is_cuda:
        return ("ieee",)
    return ("ieee", "tf32") if dtype == torch.float32 else ("tf32",)


def _row_jobs(target: Target, dtype: torch.dtype) -> Iterator[Job]:
    for tile in rms_norm.TILES:
        for case in ("plain", "full", "odd"):
            constants = {
                "NORM": "early" if case == "plain" else "offset",
                "RESIDUAL": case != "plain",
                "ONE_STEP": tile is not rms_norm.TILES[-1],
                "BLOCK_M": tile.block_m,
                "BLOCK_K": tile.block_k,
            }
            pointers = {} if case == "plain" else {"weight_ptr": "*fp32"}
            yield Job(target, rms_norm.rms_norm_kernel, dtype, case, tile.num_warps, constants, pointers)
        constants = {n: v for n, v in constants.items() if n.startswith("BLOCK")} | {"OFFSET": True}
        pointers = {"weight_ptr": "*fp32", "factor_ptr": "*fp32"}
        yield Job(target, prefill.scale_rows_kernel, dtype, "full", tile.num_warps, constants, pointers)


def _prefill_jobs(target: Target, dtype: torch.dtype, precision: str) -> Iterator[Job]:
    exact = precision == "ieee" and target.is_cuda
    whole = "exact" if exact else "described" if target.has_descriptors else "pointed"
    fullest = "described_erf" if whole == "described" else whole
    for kind, case in (
        (whole, "plain"),
        (whole, "tanh"),
        (fullest, "full"),
        ("exact" if exact else "unaligned", "odd"),
    ):
        full = case in ("full", "odd")
        constants = {
            "FACTOR": True,
            "ACT": "gelu" if full else "gelu_tanh" if case == "tanh" else "silu",
            "GATE_BIAS": full,
            "UP_BIAS": full,
            "DESCRIBED": kind.startswith("described"),
            "PRECISION": precision,
            "GROUP": prefill.GROUP_M,
        }
        tile = prefill.TILES[kind][dtype.itemsize]
        made = _tiled(target, prefill.gated_kernel, dtype, case, tile, constants, {"factor_ptr": "*fp32"})
        yield dataclasses.replace(made, instruction=None if exact else target.instruction, general=_VECTORS)


def _gate_up(target: Target, dtype: torch.dtype, tile: Tile, precision: str, case: str) -> Job:
    full = case in ("full", "odd")  # the error function takes the most registers, so it stands for the activations
    constants = {
        "NORM": "none" if case == "bare" else "offset" if full else "scale",
        "ACT": "gelu" if full else "silu",
        "GATE_BIAS": full,
        "UP_BIAS": full,
        "PRECISION": precision,
    }
    pointers = {"scale_ptr": "*fp32"} if full else {}
    return _tiled(target, mlp.gate_up_kernel, dtype, case, tile, constants, pointers)


def _down(target: Target, dtype: torch.dtype, tile: Tile, precision: str, case: str) -> Job:
    full = case in ("full", "odd")
    pointers = {"out_ptr": "*fp32"} if case == "split" else {}
    constants = {"BIAS": full, "RESIDUAL": full, "PRECISION": precision}
    return _tiled(target, mlp.down_kernel, dtype, case, tile, constants, pointers)


def _linears(target: Target, dtype: torch.dtype, tile: Tile, precision: str, case: str) -> Job:
    full = case in ("full", "odd")
    constants = {"OFFSET": full, "Q_BIAS": full, "K_BIAS": full, "V_BIAS": full, "THREE": True, "PRECISION": precision}
    pointers = {"scale_ptr": "*fp32"} if full else {}
    return _tiled(target, linears.linears_kernel, dtype, case, tile, constants, pointers)


def _tiled(
    target: Target, kernel: Any, dtype: torch.dtype, case: str, tile: Tile, constants: dict[str, Any],
    pointers: dict[str, str],
) -> Job:  # fmt: skip
    # The number of warps is an option of the compiler, the others are constants of the kernel.
    blocks = {name: value for name, value in launch_meta(tile).items() if name.isupper()}
    exact = constants["PRECISION"] == "ieee" and target.is_cuda  # on AMD fp32 has matrix instructions of its own
    instruction = None
    if tile.block_m > 1 and not exact:
        instruction = target.instruction if tile.block_n >= 64 or not target.is_cuda else "mma"
    return Job(target, kernel, dtype, case, tile.num_warps, constants | blocks, pointers, instruction)
