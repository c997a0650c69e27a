"""RMSNorm of rows of any length, alone or with the residual add in front of it, in one kernel.

Algebra, for each row: ``r = rsqrt(mean(x^2) + eps)``, and ``x * r`` scaled and rounded where the variant does so::

    early   weight * round(x * r)        late   round(weight * (x * r))        offset   round((x * r) * (1 + weight))

``x``, ``r`` and the products are fp32, as in the reference, and each rounding is where the reference has it; so the two
differ by the order of the sum of squares only. With a residual, ``x`` is ``round(x + residual)``, which is a result,
too: what the norm sees is what the next block will see, and ``r`` comes from it in fp32.

Bytes: with ``e`` the item size, ``2eMK`` for the norm, ``4eMK`` with the add (two rows in, two out). A row of up to
8192 elements stays in registers; a longer one is read twice, the second time out of the L2 cache. Source: Zhang and
Sennrich, arXiv 1910.07467; one program a row as in Triton's tutorial 05 and Liger (arXiv 2410.10989).
"""

# mypy: allow-incomplete-defs
# Triton reads annotations: only its constants have one in a kernel.

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from fxfuse.kernels.triton.common import (
    INTERPRETED,
    NORMS,
    check_choice,
    check_dtype,
    check_operand,
    narrow,
    on_device_of,
    register,
)

_IN_REGISTERS = 8192
_STEP = 4096


@dataclass(frozen=True)
class RowTile:
    """``block_m`` rows a program, ``block_k`` elements of each a step."""

    block_m: int
    block_k: int
    num_warps: int


def tile(hidden: int) -> RowTile:
    """The tile for rows of this length: 8 to 16 elements a thread, and several short rows to a program."""
    block_k = max(64, triton.next_power_of_2(hidden)) if hidden <= _IN_REGISTERS else _STEP
    block_m = max(1, 1024 // block_k)
    return RowTile(block_m, block_k, min(16, max(4, block_m * block_k // 512)))


# Everything that is shipped: one for each power of two that fits in registers, and one for longer rows.
TILES = tuple(dict.fromkeys(tile(hidden) for hidden in (*(64 << i for i in range(8)), _IN_REGISTERS + 1)))


@triton.jit
def load_row(
    x_ptr, residual_ptr, m, k, rows, K, x_m, x_k, residual_m, residual_k, RESIDUAL: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """``x``, or ``x + residual`` rounded to ``dtype``, in fp32; 0 outside."""
    within = (m < rows)[:, None] & (k < K)[None, :]
    x = tl.load(x_ptr + m[:, None] * x_m + k[None, :] * x_k, within, 0.0).to(tl.float32)
    if RESIDUAL:
        x += tl.load(residual_ptr + m[:, None] * residual_m + k[None, :] * residual_k, within, 0.0).to(tl.float32)
        x = narrow(x, dtype).to(tl.float32)
    return x


@triton.jit
def store_row(
    x, r, weight_ptr, total_ptr, out_ptr, m, k, rows, K, weight_k, NORM: tl.constexpr, RESIDUAL: tl.constexpr
):
    """Scale and round one part of the rows, and store it with the sum that it came from."""
    within = (m < rows)[:, None] & (k < K)[None, :]
    to = m[:, None] * K + k[None, :]
    if RESIDUAL:
        tl.store(total_ptr + to, x.to(total_ptr.dtype.element_ty), within)  # exact: it was rounded already
    y = x * r[:, None]
    if NORM != "none":
        weight = tl.load(weight_ptr + k * weight_k, k < K, 0.0).to(tl.float32)[None, :]
        if NORM == "early":
            y = narrow(y, total_ptr.dtype.element_ty).to(tl.float32)
        if NORM == "offset":
            weight += 1.0
        y *= weight
    tl.store(out_ptr + to, narrow(y, out_ptr.dtype.element_ty), within)


@triton.jit
def rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, total_ptr, out_ptr,
    rows, K, x_m, x_k, residual_m, residual_k, weight_k, eps,
    NORM: tl.constexpr, RESIDUAL: tl.constexpr, ONE_STEP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[m] = norm(total[m]); total[m] = x[m] + residual[m], or x[m], when ``total_ptr`` only tells its dtype."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    dtype: tl.constexpr = total_ptr.dtype.element_ty
    if ONE_STEP:
        k = tl.arange(0, BLOCK_K).to(tl.int64)
        x = load_row(x_ptr, residual_ptr, m, k, rows, K, x_m, x_k, residual_m, residual_k, RESIDUAL, dtype)
        r = tl.rsqrt(tl.sum(x * x, 1) / K + eps)
        store_row(x, r, weight_ptr, total_ptr, out_ptr, m, k, rows, K, weight_k, NORM, RESIDUAL)
    else:
        squares = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
        for start in range(0, K, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K).to(tl.int64)
            x = load_row(x_ptr, residual_ptr, m, k, rows, K, x_m, x_k, residual_m, residual_k, RESIDUAL, dtype)
            squares += x * x
        r = tl.rsqrt(tl.sum(squares, 1) / K + eps)
        for start in range(0, K, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K).to(tl.int64)
            x = load_row(x_ptr, residual_ptr, m, k, rows, K, x_m, x_k, residual_m, residual_k, RESIDUAL, dtype)
            store_row(x, r, weight_ptr, total_ptr, out_ptr, m, k, rows, K, weight_k, NORM, RESIDUAL)


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float, norm: str) -> torch.Tensor:
    """``norm(x)`` over the last dimension, as a Triton kernel.

    ``x``: ``[..., K]`` and ``weight``: ``[K]``, each in bf16, fp16 or fp32, with any strides. ``norm``: ``early``,
    ``late`` or ``offset``, or ``none`` without a weight. Returns ``[..., K]``, contiguous, in the dtype that eager has:
    that of ``x``; of both promoted where ``early`` multiplies last. Repeated runs are bit-identical.
    Raises ValueError for a shape, dtype, device or norm other than these.
    """
    _check(x, None, weight, norm)
    out = x.new_empty(x.shape, dtype=_out_dtype(x.dtype, weight, norm))
    if out.numel() == 0:
        return out
    rms_norm_ = rms_norm_kernel if INTERPRETED.value else wrap_triton(rms_norm_kernel)  # a name: torch looks for these
    flat = x.reshape(-1, x.shape[-1])
    arguments, options = _launch(flat, flat, weight, norm)
    with on_device_of(x):
        rms_norm_[(triton.cdiv(flat.shape[0], options["BLOCK_M"]),)](
            flat, flat, flat if weight is None else weight, flat, out, *arguments, eps, RESIDUAL=False, **options
        )
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, norm: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x + residual`` and its norm, as one Triton kernel.

    As :func:`rms_norm`, with ``residual`` of the shape of ``x``. The sum is in the dtype that promotion gives it.
    """
    _check(x, residual, weight, norm)
    total = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype))
    out = x.new_empty(x.shape, dtype=_out_dtype(total.dtype, weight, norm))
    if out.numel() == 0:
        return total, out
    rms_norm_ = rms_norm_kernel if INTERPRETED.value else wrap_triton(rms_norm_kernel)
    flat, other = x.reshape(-1, x.shape[-1]), residual.reshape(-1, x.shape[-1])
    arguments, options = _launch(flat, other, weight, norm)
    with on_device_of(x):
        rms_norm_[(triton.cdiv(flat.shape[0], options["BLOCK_M"]),)](
            flat, other, weight, total, out, *arguments, eps, RESIDUAL=True, **options
        )
    return total, out


@functools.cache
def op() -> Any:
    """``torch.ops.fxfuse.rms_norm.default``, registered on the first call."""
    return register("rms_norm", rms_norm, _fake)


@functools.cache
def add_op() -> Any:
    """``torch.ops.fxfuse.add_rms_norm.default``, registered on the first call."""
    return register("add_rms_norm", add_rms_norm, _fake_add)


def _fake(x: torch.Tensor, weight: torch.Tensor | None, eps: float, norm: str) -> torch.Tensor:
    _check(x, None, weight, norm)
    return x.new_empty(x.shape, dtype=_out_dtype(x.dtype, weight, norm))


def _fake_add(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, norm: str
) -> tuple[torch.Tensor, torch.Tensor]:
    _check(x, residual, weight, norm)
    total = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype))
    return total, x.new_empty(x.shape, dtype=_out_dtype(total.dtype, weight, norm))


def _launch(
    flat: torch.Tensor, other: torch.Tensor, weight: torch.Tensor | None, norm: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The kernel's integers after its pointers, and its constants but one."""
    rows, hidden = flat.shape[0], int(flat.shape[1])  # where it is symbolic, int() makes it a constant of the graph
    chosen = tile(hidden)
    weight_k = 0 if weight is None else weight.stride(0)
    options = {
        "NORM": norm,
        "ONE_STEP": hidden <= chosen.block_k,
        "BLOCK_M": chosen.block_m,
        "BLOCK_K": chosen.block_k,
        "num_warps": chosen.num_warps,
    }
    return (rows, hidden, *flat.stride(), *other.stride(), weight_k), options


def _out_dtype(dtype: torch.dtype, weight: torch.Tensor | None, norm: str) -> torch.dtype:
    return dtype if weight is None or norm != "early" else torch.promote_types(dtype, weight.dtype)


def _check(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor | None, norm: str) -> None:
    check_choice("norm", norm, ("none",) if weight is None else NORMS)
    check_dtype("x", x)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected [..., hidden] with hidden positive")
    check_operand("residual", residual, tuple(x.shape), x, same_dtype=False)
    check_operand("weight", weight, (x.shape[-1],), x, same_dtype=False)
