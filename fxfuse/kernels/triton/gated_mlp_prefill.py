"""Gate and up projections of many rows (prefill), with the norm and the activation around them, in one persistent GEMM.

Algebra, with ``r = rsqrt(mean(x^2) + eps)``, one number per row, ``s`` the scale (Gemma: ``1 + weight``) and ``2^p``
the power of two below ``r``::

    norm(x) @ W.T  =  (r / 2^p) * ((x * s * 2^p) @ W.T)

A first kernel reads ``x`` and writes ``x * s * 2^p``, rounded once, and ``r / 2^p`` in fp32, which lies between 1 and
2. A factor that is a power of two rounds nothing, and keeps fp16 in its range where ``x * s`` would leave it. The
epilogue of the GEMM multiplies by ``r / 2^p``, so ``r`` itself is never rounded (QuACK's and CODA's ``rstd``, arXiv
2605.19269). Both accumulators, gate's and up's, are the same program's: it applies the biases, the activation and the
product, and writes ``act(gate) * up`` alone. Source of the two accumulators: flash-swiglu; of the order of tiles and
of the epilogue in halves: Triton's tutorials 03 and 09. The down projection is the caller's, by cuBLAS.

Bytes: with ``e`` the item size, ``4eMK`` for the first kernel, and ``e(MK + 2NK + MN)`` for the GEMM, were the caches
infinite; no gate, up or activation tensor of ``eMN`` each is written or read. FLOPs: ``4MNK``.

Where the card has tensor descriptors (TMA, from compute capability 9.0) tiles are copied by them, which needs rows of
16-byte multiples; elsewhere they are read through pointers. Programs are as many as the card's SMs, and each takes
every so many tiles, in groups of ``GROUP_M`` rows of tiles, so that a weight's tile is read again while the L2 cache
has it. The tiles are computed from the register and shared memory files, not measured.
"""

# mypy: allow-incomplete-defs
# Triton reads annotations: only its constants have one in a kernel.

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from fxfuse import machine
from fxfuse.kernels.triton.common import (
    ACTS,
    INTERPRETED,
    NORMS,
    activation,
    aligned,
    check_choice,
    check_dtype,
    check_operand,
    dot,
    narrow,
    on_device_of,
    precision,
    register,
    sm_count,
    stride,
)
from fxfuse.kernels.triton.rms_norm import tile as row_tile
from fxfuse.kernels.triton.tiles import Tile, launch_meta

GROUP_M = 8
_SHARED = 180 * 1024  # a program's, in bytes: the largest tile takes 160 KiB
# Everything that is shipped. ``described``: with tensor descriptors, and smaller for the error function, which takes
# more registers; ``pointed``: without; ``unaligned``: element by element; ``exact``: fp32 without tensor cores.
TILES: dict[str, dict[int, Tile]] = {
    "described": {2: Tile(128, 128, 64, 8, 3), 4: Tile(128, 64, 32, 8, 3)},
    "described_erf": {2: Tile(128, 64, 64, 8, 4), 4: Tile(128, 64, 32, 8, 3)},
    "pointed": {2: Tile(128, 64, 64, 8, 3), 4: Tile(64, 64, 32, 8, 3)},
    "unaligned": {2: Tile(64, 64, 32, 8, 2), 4: Tile(64, 32, 32, 8, 2)},
    "exact": {4: Tile(64, 32, 32, 8, 2)},
}


@triton.jit
def scale_rows_kernel(
    x_ptr, weight_ptr, out_ptr, factor_ptr, rows, K, x_m, x_k, weight_k, eps,
    OFFSET: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[m] = x[m] * scale * 2^p and factor[m] = r / 2^p, where 2^p is the power of two below r."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    squares = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        within = (m < rows)[:, None] & (k < K)[None, :]
        x = tl.load(x_ptr + m[:, None] * x_m + k[None, :] * x_k, within, 0.0).to(tl.float32)
        squares += x * x
    r = tl.rsqrt(tl.sum(squares, 1) / K + eps)
    power = (r.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    has_power = (power > 0.0) & (power < float("inf"))  # 0, infinity and NaN have none, and stay in front of the GEMM
    power = tl.where(has_power, power, r)
    tl.store(factor_ptr + m, tl.where(has_power, r / power, 1.0), m < rows)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        within = (m < rows)[:, None] & (k < K)[None, :]
        x = tl.load(x_ptr + m[:, None] * x_m + k[None, :] * x_k, within, 0.0).to(tl.float32)
        scale = tl.load(weight_ptr + k * weight_k, k < K, 0.0).to(tl.float32)
        if OFFSET:
            scale += 1.0
        y = x * power[:, None] * scale[None, :]
        tl.store(out_ptr + m[:, None] * K + k[None, :], narrow(y, out_ptr.dtype.element_ty), within)


@triton.jit
def halves(v):
    """The left and the right half of the columns."""
    return tl.split(tl.permute(tl.reshape(v, (v.shape[0], 2, v.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def gated_kernel(
    x_ptr, factor_ptr, gate_ptr, up_ptr, gate_bias_ptr, up_bias_ptr, out_ptr,
    rows, N, K, x_m, x_k, gate_n, gate_k, up_n, up_k, gate_bias_n, up_bias_n,
    FACTOR: tl.constexpr, ACT: tl.constexpr, GATE_BIAS: tl.constexpr, UP_BIAS: tl.constexpr, DESCRIBED: tl.constexpr,
    PRECISION: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out[m, n] = act(g[m, n]) * u[m, n], where g[m, n] = factor[m] * (x[m] . gate[n]) + gate_bias[n], and so u."""
    m_tiles = tl.cdiv(rows, BLOCK_M)
    n_tiles = tl.cdiv(N, BLOCK_N)
    if DESCRIBED:
        x_tiles = tl.make_tensor_descriptor(x_ptr, [rows, K], [x_m, 1], [BLOCK_M, BLOCK_K])
        gate_tiles = tl.make_tensor_descriptor(gate_ptr, [N, K], [gate_n, 1], [BLOCK_N, BLOCK_K])
        up_tiles = tl.make_tensor_descriptor(up_ptr, [N, K], [up_n, 1], [BLOCK_N, BLOCK_K])
        out_tiles = tl.make_tensor_descriptor(out_ptr, [rows, N], [N, 1], [BLOCK_M, BLOCK_N // 2])
    for tile in tl.range(tl.program_id(0), m_tiles * n_tiles, tl.num_programs(0)):
        group = tile // (GROUP * n_tiles)
        height = tl.minimum(m_tiles - group * GROUP, GROUP)
        at_m = (group * GROUP + tile % (GROUP * n_tiles) % height) * BLOCK_M
        at_n = tile % (GROUP * n_tiles) // height * BLOCK_N
        m = at_m.to(tl.int64) + tl.arange(0, BLOCK_M)
        n = at_n.to(tl.int64) + tl.arange(0, BLOCK_N)
        g = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        u = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
            if DESCRIBED:
                x = x_tiles.load([at_m, start])
                gate = gate_tiles.load([at_n, start])
                up = up_tiles.load([at_n, start])
            else:
                k = start + tl.arange(0, BLOCK_K).to(tl.int64)
                in_w = (n < N)[:, None] & (k < K)[None, :]
                in_x = (m < rows)[:, None] & (k < K)[None, :]
                x = tl.load(x_ptr + m[:, None] * x_m + k[None, :] * x_k, in_x, 0.0)
                gate = tl.load(gate_ptr + n[:, None] * gate_n + k[None, :] * gate_k, in_w, 0.0)
                up = tl.load(up_ptr + n[:, None] * up_n + k[None, :] * up_k, in_w, 0.0)
            g = dot(x, tl.trans(gate), g, PRECISION)
            u = dot(x, tl.trans(up), u, PRECISION)
        if FACTOR:
            factor = tl.load(factor_ptr + m, m < rows, 0.0)[:, None]
            g *= factor
            u *= factor
        if GATE_BIAS:
            g += tl.load(gate_bias_ptr + n * gate_bias_n, n < N, 0.0).to(tl.float32)[None, :]
        if UP_BIAS:
            u += tl.load(up_bias_ptr + n * up_bias_n, n < N, 0.0).to(tl.float32)[None, :]
        if DESCRIBED:  # in halves: beside both accumulators there are few registers for the activation
            g_left, g_right = halves(g)
            u_left, u_right = halves(u)
            h = narrow(activation(g_left, ACT) * u_left, out_ptr.dtype.element_ty)
            out_tiles.store([at_m, at_n], h)
            h = narrow(activation(g_right, ACT) * u_right, out_ptr.dtype.element_ty)
            out_tiles.store([at_m, at_n + BLOCK_N // 2], h)
        else:
            h = narrow(activation(g, ACT) * u, out_ptr.dtype.element_ty)
            tl.store(out_ptr + m[:, None] * N + n[None, :], h, (m < rows)[:, None] & (n < N)[None, :])


def gated_product_prefill(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    gate: torch.Tensor,
    up: torch.Tensor,
    gate_bias: torch.Tensor | None,
    up_bias: torch.Tensor | None,
    eps: float,
    norm: str,
    act: str,
) -> torch.Tensor:
    """``act(gate(norm(x))) * up(norm(x))`` for any number of rows, as Triton kernels.

    ``x``: ``[..., K]`` in bf16, fp16 or fp32; ``gate`` and ``up``: ``[N, K]`` and the biases ``[N]``, all in the dtype
    of ``x``; ``weight``: ``[K]`` in any of the three dtypes. Any strides. ``norm``: ``early``, ``late`` or ``offset``,
    or ``none`` without a weight; ``act``: ``silu``, ``gelu``, ``gelu_tanh`` or ``relu``. Returns ``[..., N]`` in the
    dtype of ``x``, contiguous; repeated runs are bit-identical.
    fp32 uses TF32 only where ``torch.get_float32_matmul_precision()`` is not ``"highest"``.
    Raises ValueError for a shape, dtype, device, norm or act other than these.
    """
    hidden, intermediate = _check(x, weight, gate, up, gate_bias, up_bias, norm, act)
    out = x.new_empty((*x.shape[:-1], intermediate))
    rows = out.numel() // intermediate
    if rows == 0:
        return out
    # Names, not a helper: torch finds a triton_op's kernels, for its cache keys, by the calls of wrap_triton.
    if INTERPRETED.value:
        scale_rows_, gated_ = scale_rows_kernel, gated_kernel
    else:
        scale_rows_, gated_ = wrap_triton(scale_rows_kernel), wrap_triton(gated_kernel)
    flat, factor = x.reshape(-1, hidden), x
    with on_device_of(x):
        if weight is not None:
            scaled, factor = x.new_empty((rows, hidden)), x.new_empty((rows,), dtype=torch.float32)
            shape = row_tile(hidden)
            scale_rows_[(triton.cdiv(rows, shape.block_m),)](
                flat, weight, scaled, factor, rows, hidden, *flat.stride(), *weight.stride(), eps,
                OFFSET=norm == "offset",
                BLOCK_M=shape.block_m, BLOCK_K=shape.block_k, num_warps=shape.num_warps,
            )  # fmt: skip
            flat = scaled
        kind = _kind(flat, gate, up, act)
        tile = TILES[kind][x.element_size()]
        tiles = triton.cdiv(rows, tile.block_m) * triton.cdiv(intermediate, tile.block_n)
        if kind.startswith("described") and not INTERPRETED.value:
            triton.set_allocator(_scratch)  # descriptors lie in global memory; Inductor does so, too, at each launch
        gated_[(torch.sym_min(sm_count(x.device), tiles),)](
            flat, factor, gate, up, gate if gate_bias is None else gate_bias, up if up_bias is None else up_bias, out,
            rows, intermediate, hidden, *flat.stride(), *gate.stride(), *up.stride(), *stride(gate_bias),
            *stride(up_bias), FACTOR=weight is not None, ACT=act, GATE_BIAS=gate_bias is not None,
            UP_BIAS=up_bias is not None, DESCRIBED=kind.startswith("described"), PRECISION=precision(x.dtype),
            GROUP=GROUP_M, **launch_meta(tile),
        )  # fmt: skip
    return out


@functools.cache
def op() -> Any:
    """``torch.ops.fxfuse.gated_product_prefill.default``, registered on the first call."""
    return register("gated_product_prefill", gated_product_prefill, _fake)


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    gate: torch.Tensor,
    up: torch.Tensor,
    gate_bias: torch.Tensor | None,
    up_bias: torch.Tensor | None,
    eps: float,
    norm: str,
    act: str,
) -> torch.Tensor:
    _, intermediate = _check(x, weight, gate, up, gate_bias, up_bias, norm, act)
    return x.new_empty((*x.shape[:-1], intermediate))


def _check(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    gate: torch.Tensor,
    up: torch.Tensor,
    gate_bias: torch.Tensor | None,
    up_bias: torch.Tensor | None,
    norm: str,
    act: str,
) -> tuple[int, int]:
    """(hidden, intermediate), once everything is known to be what the kernels assume."""
    check_choice("norm", norm, ("none",) if weight is None else NORMS)
    check_choice("act", act, ACTS)
    check_dtype("x", x)
    if x.dim() == 0 or gate.dim() != 2:
        dims = f"x {list(x.shape)}, gate {list(gate.shape)}"
        raise ValueError(f"got {dims}, expected x [..., hidden], gate [intermediate, hidden]")
    # Weights do not change their shapes: where these are symbolic, int() makes them constants of the graph.
    hidden, intermediate = int(gate.shape[1]), int(gate.shape[0])
    if hidden == 0 or intermediate == 0:
        raise ValueError(f"hidden {hidden} and intermediate {intermediate} must both be positive")
    if x.shape[-1] != hidden:
        raise ValueError(f"x has {x.shape[-1]} features, expected {hidden}, the columns of gate")
    check_operand("weight", weight, (hidden,), x, same_dtype=False)
    for name, tensor, shape in (
        ("gate", gate, (intermediate, hidden)),
        ("up", up, (intermediate, hidden)),
        ("gate_bias", gate_bias, (intermediate,)),
        ("up_bias", up_bias, (intermediate,)),
    ):
        check_operand(name, tensor, shape, x)
    return hidden, intermediate


def _kind(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, act: str) -> str:
    """Which of ``TILES`` serves these operands on their card."""
    if x.dtype == torch.float32 and precision(x.dtype) == "ieee" and torch.version.hip is None:
        return "exact"
    if not (aligned(x) and aligned(gate) and aligned(up) and gate.shape[0] % 16 == 0):
        return "unaligned"
    if not has_descriptors(x.device):
        return "pointed"
    return "described_erf" if act == "gelu" else "described"


def has_descriptors(device: torch.device) -> bool:
    """Whether the card has a copy engine that reads tensor descriptors, and the shared memory for tiles that fill it.

    Data-centre cards have both; the interpreter has the engine in software.
    """
    if INTERPRETED.value:
        return True
    capability, shared = machine.capability(device), machine.shared_memory(device)
    return torch.version.hip is None and (capability or (0, 0)) >= (9, 0) and (shared or 0) >= _SHARED


def _scratch(size: int, alignment: int, stream: int | None) -> torch.Tensor:
    """Device memory for Triton, in the form that it asks for."""
    return torch.empty(size, dtype=torch.int8, device="cuda")
