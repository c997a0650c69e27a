"""A gated MLP for few rows (1 to 64), with its RMSNorm and residual, in two kernels that stream the weights once.

Algebra, with ``r = rsqrt(mean(x^2) + eps)``, one number per row, and ``s`` the scale (Gemma: ``1 + weight``)::

    norm(x) @ W.T  =  (x * r * s) @ W.T  =  r * ((x * s) @ W.T)

So the K loop needs no normalised row: it multiplies ``x`` by ``s`` in registers, sums ``x^2`` on the side, and the
epilogue applies ``r`` in fp32, the biases, the activation and the product. Source of the deferred scale: FlashNorm
(arXiv 2407.09577); QuACK ships it for training GEMMs. Both ``early`` and ``late`` norms are this one function: the
kernel keeps ``x * r * s`` in higher precision than either of their roundings. Without a norm ``r`` and ``s`` are 1.
A residual is added in the epilogue of the down projection, or of its reduction, and rounded with it.

Bytes: with ``e`` the item size, ``e * N * (2K + O)`` of weights, each read once and as they lie (gate and up through
their own pointers and strides, nothing stacked, folded or copied). Activations come out of the L2 cache. There is no
norm output, and no gate, up or ``act(gate)`` tensor; the one intermediate is the product ``[rows, N]``.

The K loop has two forms. One row multiplies and accumulates element by element in fp32 (``[BLOCK_N, BLOCK_K]``
accumulators, one reduction at the end); more rows are padded to 16, 32 or 64 and go through ``tl.dot`` with the weights
on the large side (swap-AB), which has the 64 rows of Hopper's warpgroup instructions where they are meant. There
``x * s`` is rounded once, to bf16 for bf16, and to TF32 for fp16: TF32 has fp16's mantissa with fp32's range, so
``x * s`` cannot overflow where ``norm(x)`` would not.

The K loop of the down projection is split where its programs would be too few for the card. The parts are fp32, and a
second kernel adds them in order: no atomics, so repeated runs are bit-identical.
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
from fxfuse.kernels.triton.tiles import MAX_ROWS, Tile, launch_meta, tiles_for

# A launch costs about 1.3 us; at H200's 33 GB/s for each SM that is this many bytes of streaming.
_LAUNCH_BYTES = 43_000
_MIN_SPLIT = 1024
REDUCE_BLOCK = 256


@dataclass(frozen=True)
class Config:
    """What one call launches: a tile for each of the two kernels, and the parts of the down projection's K loop."""

    gate_up: Tile
    down: Tile
    splits: int


def config(
    rows: int,
    hidden: int,
    intermediate: int,
    out: int,
    dtype: torch.dtype,
    sm_count: int,
    gate_up_aligned: bool = True,
    down_aligned: bool = True,
    bare: bool = False,
) -> Config:
    """The tiles and splits for one shape; pure, so that tests and compiles can ask for any card.

    The down projection is split only where too few programs would each read a long row: one SM streams about twice its
    fair share of the card, and the second launch has to be earned. ``bare``: there is no norm; then the compiler spills
    a register of the narrow tile for occupancy, and of the one for unaligned weights none.
    """
    tiles = tiles_for(rows, dtype)
    gate_up = tiles.choose(intermediate, gate_up_aligned, sm_count)
    if bare and gate_up is tiles.narrow:
        gate_up = tiles.unaligned
    down = tiles.choose(out, down_aligned, sm_count)
    row_bytes = intermediate * dtype.itemsize
    splits = 1
    if down.block_n * row_bytes // 2 - out * row_bytes // sm_count > _LAUNCH_BYTES:
        splits = max(1, min(triton.cdiv(sm_count, triton.cdiv(out, down.block_n)), intermediate // _MIN_SPLIT))
    return Config(gate_up, down, splits)


@triton.jit
def gate_up_kernel(
    x_ptr, scale_ptr, gate_ptr, up_ptr, gate_bias_ptr, up_bias_ptr, out_ptr,
    rows, K, N, x_m, x_k, scale_k, gate_n, gate_k, up_n, up_k, gate_bias_n, up_bias_n, eps,
    NORM: tl.constexpr, ACT: tl.constexpr, GATE_BIAS: tl.constexpr, UP_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out[m, n] = act(norm(x)[m] . gate[n] + gate_bias[n]) * (norm(x)[m] . up[n] + up_bias[n]), one tile of n each.

    ``NORM`` is ``none``, ``scale`` or ``offset``.
    """
    m = tl.arange(0, BLOCK_M).to(tl.int64)
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)  # int64: N * K may pass 2^31
    ONE_ROW: tl.constexpr = BLOCK_M == 1
    WIDTH: tl.constexpr = BLOCK_K if ONE_ROW else BLOCK_M
    if NORM != "none":
        squares = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    g = tl.zeros((BLOCK_N, WIDTH), tl.float32)
    u = tl.zeros((BLOCK_N, WIDTH), tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        in_w = (n < N)[:, None] & (k < K)[None, :]
        gate = tl.load(gate_ptr + n[:, None] * gate_n + k[None, :] * gate_k, in_w, 0.0, eviction_policy="evict_first")
        up = tl.load(up_ptr + n[:, None] * up_n + k[None, :] * up_k, in_w, 0.0, eviction_policy="evict_first")
        in_x = (m < rows)[:, None] & (k < K)[None, :]
        x = tl.load(x_ptr + m[:, None] * x_m + k[None, :] * x_k, in_x, 0.0)
        if NORM != "none":
            x = x.to(tl.float32)
            squares += x * x
            scale = tl.load(scale_ptr + k * scale_k, k < K, 0.0).to(tl.float32)
            if NORM == "offset":
                scale += 1.0
            x *= scale[None, :]
        if ONE_ROW:
            x = x.to(tl.float32)
            g = tl.fma(gate.to(tl.float32), x, g)
            u = tl.fma(up.to(tl.float32), x, u)
        else:
            if NORM != "none" and gate.dtype == tl.bfloat16:
                x = narrow(x, tl.bfloat16)
            x = tl.trans(x)
            g = dot(gate, x, g, PRECISION)
            u = dot(up, x, u, PRECISION)
    if ONE_ROW:
        g = tl.sum(g, 1)[:, None]
        u = tl.sum(u, 1)[:, None]
    if NORM != "none":
        r = tl.rsqrt(tl.sum(squares, 1) / K + eps)
        g *= r[None, :]
        u *= r[None, :]
    if GATE_BIAS:
        g += tl.load(gate_bias_ptr + n * gate_bias_n, n < N, 0.0).to(tl.float32)[:, None]
    if UP_BIAS:
        u += tl.load(up_bias_ptr + n * up_bias_n, n < N, 0.0).to(tl.float32)[:, None]
    h = activation(g, ACT) * u
    to = out_ptr + m[None, :] * N + n[:, None]
    tl.store(to, narrow(h, out_ptr.dtype.element_ty), (n < N)[:, None] & (m < rows)[None, :])


@triton.jit
def down_kernel(
    h_ptr, down_ptr, bias_ptr, residual_ptr, out_ptr,
    rows, N, OUT, down_o, down_n, bias_o, residual_m, residual_o, per_split,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out[split, m, o] = h[m] . down[o] + bias[o] + residual[m, o] over the split's part of N, one tile of o each."""
    m = tl.arange(0, BLOCK_M).to(tl.int64)
    o = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    first = split * per_split
    last = tl.minimum(first + per_split, N)
    ONE_ROW: tl.constexpr = BLOCK_M == 1
    WIDTH: tl.constexpr = BLOCK_K if ONE_ROW else BLOCK_M
    y = tl.zeros((BLOCK_N, WIDTH), tl.float32)
    for start in tl.range(first, last, BLOCK_K, num_stages=STAGES):
        n = start + tl.arange(0, BLOCK_K).to(tl.int64)
        in_w = (o < OUT)[:, None] & (n < last)[None, :]
        w = tl.load(down_ptr + o[:, None] * down_o + n[None, :] * down_n, in_w, 0.0, eviction_policy="evict_first")
        h = tl.load(h_ptr + m[:, None] * N + n[None, :], (m < rows)[:, None] & (n < last)[None, :], 0.0)
        if ONE_ROW:
            y = tl.fma(w.to(tl.float32), h.to(tl.float32), y)
        else:
            y = dot(w, tl.trans(h), y, PRECISION)
    if ONE_ROW:
        y = tl.sum(y, 1)[:, None]
    if BIAS:
        y += tl.load(bias_ptr + o * bias_o, o < OUT, 0.0).to(tl.float32)[:, None]
    within = (o < OUT)[:, None] & (m < rows)[None, :]
    if RESIDUAL:
        y += tl.load(residual_ptr + m[None, :] * residual_m + o[:, None] * residual_o, within, 0.0).to(tl.float32)
    to = out_ptr + (split.to(tl.int64) * rows + m)[None, :] * OUT + o[:, None]
    tl.store(to, narrow(y, out_ptr.dtype.element_ty), within)


@triton.jit
def reduce_kernel(
    parts_ptr, bias_ptr, residual_ptr, out_ptr, size, OUT, bias_o, residual_m, residual_o, splits,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[i] = sum of parts[split, i] in the order of the splits, plus bias and residual; i runs over rows * OUT."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    y = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        y += tl.load(parts_ptr + split * size + i, i < size, 0.0)
    if BIAS:
        y += tl.load(bias_ptr + (i % OUT) * bias_o, i < size, 0.0).to(tl.float32)
    if RESIDUAL:
        at = i // OUT * residual_m + i % OUT * residual_o
        y += tl.load(residual_ptr + at, i < size, 0.0).to(tl.float32)
    tl.store(out_ptr + i, narrow(y, out_ptr.dtype.element_ty), i < size)


def rms_norm_gated_mlp_decode(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    gate: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    gate_bias: torch.Tensor | None,
    up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
    eps: float,
    norm: str,
    act: str,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """``residual + down(act(gate(norm(x))) * up(norm(x)))`` for at most 64 rows, as Triton kernels.

    ``x``: ``[..., K]`` in bf16, fp16 or fp32; ``gate`` and ``up``: ``[N, K]``, ``down``: ``[O, N]`` and the biases
    ``[N]``, ``[N]``, ``[O]``, ``residual``: ``[..., O]``, all in the dtype of ``x``; ``weight``: ``[K]`` in any of the
    three dtypes. Any strides. ``norm``: ``early``, ``late`` or ``offset``, or ``none`` without a weight; ``act``:
    ``silu``, ``gelu``, ``gelu_tanh`` or ``relu``.
    Returns ``[..., O]`` in the dtype of ``x``, contiguous; repeated runs are bit-identical.
    fp32 uses TF32 only where ``torch.get_float32_matmul_precision()`` is not ``"highest"``.
    Raises ValueError for a shape, dtype, device, norm or act other than these.
    """
    hidden, intermediate, out = _check(x, weight, gate, up, down, gate_bias, up_bias, down_bias, residual, norm, act)
    result = x.new_empty((*x.shape[:-1], out))
    rows = result.numel() // out
    if rows == 0:
        return result
    # Names, not a helper: torch finds a triton_op's kernels, for its cache keys, by the calls of wrap_triton.
    if INTERPRETED.value:
        gate_up_, down_, reduce_ = gate_up_kernel, down_kernel, reduce_kernel
    else:
        gate_up_, down_, reduce_ = wrap_triton(gate_up_kernel), wrap_triton(down_kernel), wrap_triton(reduce_kernel)
    whole = aligned(gate) and aligned(up), aligned(down)
    chosen = config(rows, hidden, intermediate, out, x.dtype, sm_count(x.device), *whole, weight is None)
    input_precision = precision(x.dtype)
    flat = x.reshape(-1, hidden)
    added = flat if residual is None else residual.reshape(-1, out)
    h = x.new_empty((rows, intermediate))
    with on_device_of(x):
        tile = chosen.gate_up
        gate_up_[(triton.cdiv(intermediate, tile.block_n),)](
            flat, flat if weight is None else weight, gate, up,
            gate if gate_bias is None else gate_bias, up if up_bias is None else up_bias, h,
            rows, hidden, intermediate,
            *flat.stride(), *stride(weight), *gate.stride(), *up.stride(), *stride(gate_bias), *stride(up_bias),
            eps, NORM=norm if norm in ("none", "offset") else "scale", ACT=act,
            GATE_BIAS=gate_bias is not None, UP_BIAS=up_bias is not None,
            PRECISION=input_precision, **launch_meta(tile),
        )  # fmt: skip
        tile = chosen.down
        # Whole steps of the K loop, so that only the last split is masked within its range.
        per_split = triton.cdiv(triton.cdiv(intermediate, chosen.splits), tile.block_k) * tile.block_k
        splits = triton.cdiv(intermediate, per_split)
        to = result if splits == 1 else x.new_empty((splits, rows, out), dtype=torch.float32)
        bias = down if down_bias is None else down_bias
        down_[(triton.cdiv(out, tile.block_n), splits)](
            h, down, bias, added, to,
            rows, intermediate, out, *down.stride(), *stride(down_bias), *added.stride(), per_split,
            BIAS=down_bias is not None and splits == 1, RESIDUAL=residual is not None and splits == 1,
            PRECISION=input_precision, **launch_meta(tile),
        )  # fmt: skip
        if splits > 1:
            reduce_[(triton.cdiv(rows * out, REDUCE_BLOCK),)](
                to, bias, added, result, rows * out, out, *stride(down_bias), *added.stride(), splits,
                BIAS=down_bias is not None, RESIDUAL=residual is not None, BLOCK=REDUCE_BLOCK,
            )  # fmt: skip
    return result


@functools.cache
def op() -> Any:
    """``torch.ops.fxfuse.rms_norm_gated_mlp_decode.default``, registered on the first call."""
    return register("rms_norm_gated_mlp_decode", rms_norm_gated_mlp_decode, _fake)


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    gate: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    gate_bias: torch.Tensor | None,
    up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
    eps: float,
    norm: str,
    act: str,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    _, _, out = _check(x, weight, gate, up, down, gate_bias, up_bias, down_bias, residual, norm, act)
    return x.new_empty((*x.shape[:-1], out))


def _check(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    gate: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    gate_bias: torch.Tensor | None,
    up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    norm: str,
    act: str,
) -> tuple[int, int, int]:
    """(hidden, intermediate, out), once everything is known to be what the kernels assume."""
    check_choice("norm", norm, ("none",) if weight is None else NORMS)
    check_choice("act", act, ACTS)
    check_dtype("x", x)
    if x.dim() == 0 or gate.dim() != 2 or down.dim() != 2:
        dims = f"x {list(x.shape)}, gate {list(gate.shape)}, down {list(down.shape)}"
        raise ValueError(f"got {dims}, expected x [..., hidden], gate [intermediate, hidden], down [out, intermediate]")
    # Weights do not change their shapes: where these are symbolic, int() makes them constants of the graph.
    hidden, intermediate, out = int(gate.shape[1]), int(gate.shape[0]), int(down.shape[0])
    if hidden == 0 or intermediate == 0 or out == 0:
        raise ValueError(f"hidden {hidden}, intermediate {intermediate} and out {out} must all be positive")
    if x.shape[-1] != hidden:
        raise ValueError(f"x has {x.shape[-1]} features, expected {hidden}, the columns of gate")
    if x.numel() > MAX_ROWS * hidden:
        raise ValueError(f"x has {x.numel() // hidden} rows, expected at most {MAX_ROWS}")
    check_operand("weight", weight, (hidden,), x, same_dtype=False)
    for name, tensor, shape in (
        ("gate", gate, (intermediate, hidden)),
        ("up", up, (intermediate, hidden)),
        ("down", down, (out, intermediate)),
        ("gate_bias", gate_bias, (intermediate,)),
        ("up_bias", up_bias, (intermediate,)),
        ("down_bias", down_bias, (out,)),
        ("residual", residual, (*x.shape[:-1], out)),
    ):
        check_operand(name, tensor, shape, x)
    return hidden, intermediate, out
