"""RMSNorm and its two or three projections (query, key, value) for 1 to 64 rows, in one launch.

Algebra, with ``r = rsqrt(mean(x^2) + eps)``, one number per row, and ``s`` the scale (Gemma: ``1 + weight``)::

    norm(x) @ W_i.T + b_i  =  r * ((x * s) @ W_i.T) + b_i

So each program sums ``x^2`` beside its K loop and applies ``r`` in the epilogue, in fp32; see the gated MLP's page, of
which this has the K loop's two forms and the tiles. The grid runs over the tiles of all the weights, one after another:
a narrow key or value projection fills the card together with its siblings, where a launch of its own would leave most
of it idle.

Bytes: with ``e`` the item size, ``e * K * sum(N_i)`` of weights, each read once and as it lies (nothing stacked, folded
or copied), and no norm output. Source: FlashNorm (arXiv 2407.09577) for ``r``; the single launch is Mirage's
``rmsnorm_linear`` (arXiv 2512.22219) with the weights left apart.
"""

# mypy: allow-incomplete-defs
# Triton reads annotations: only its constants have one in a kernel.

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from fxfuse.kernels.triton.common import (
    INTERPRETED,
    NORMS,
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
from fxfuse.kernels.triton.tiles import MAX_ROWS, launch_meta, tiles_for

MOST = 3


@triton.jit
def project(
    tile, x_ptr, scale_ptr, w_ptr, bias_ptr, out_ptr, rows, K, N, x_m, x_k, scale_k, w_n, w_k, bias_n, eps,
    OFFSET: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out[m, n] = norm(x)[m] . w[n] + bias[n] for one tile of n."""
    m = tl.arange(0, BLOCK_M).to(tl.int64)
    n = tile.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)  # int64: N * K may pass 2^31
    ONE_ROW: tl.constexpr = BLOCK_M == 1
    WIDTH: tl.constexpr = BLOCK_K if ONE_ROW else BLOCK_M
    squares = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    y = tl.zeros((BLOCK_N, WIDTH), tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        in_w = (n < N)[:, None] & (k < K)[None, :]
        w = tl.load(w_ptr + n[:, None] * w_n + k[None, :] * w_k, in_w, 0.0, eviction_policy="evict_first")
        in_x = (m < rows)[:, None] & (k < K)[None, :]
        x = tl.load(x_ptr + m[:, None] * x_m + k[None, :] * x_k, in_x, 0.0).to(tl.float32)
        squares += x * x
        scale = tl.load(scale_ptr + k * scale_k, k < K, 0.0).to(tl.float32)
        if OFFSET:
            scale += 1.0
        x *= scale[None, :]
        if ONE_ROW:
            y = tl.fma(w.to(tl.float32), x, y)
        else:
            if w.dtype == tl.bfloat16:
                x = narrow(x, tl.bfloat16)
            y = dot(w, tl.trans(x), y, PRECISION)
    if ONE_ROW:
        y = tl.sum(y, 1)[:, None]
    y *= tl.rsqrt(tl.sum(squares, 1) / K + eps)[None, :]
    if BIAS:
        y += tl.load(bias_ptr + n * bias_n, n < N, 0.0).to(tl.float32)[:, None]
    to = out_ptr + m[None, :] * N + n[:, None]
    tl.store(to, narrow(y, out_ptr.dtype.element_ty), (n < N)[:, None] & (m < rows)[None, :])


@triton.jit
def linears_kernel(
    x_ptr, scale_ptr, q_ptr, k_ptr, v_ptr, q_bias_ptr, k_bias_ptr, v_bias_ptr, q_out_ptr, k_out_ptr, v_out_ptr,
    rows, K, Q_N, K_N, V_N, x_m, x_k, scale_k, q_n, q_k, k_n, k_k, v_n, v_k, q_bias_n, k_bias_n, v_bias_n, eps,
    OFFSET: tl.constexpr, Q_BIAS: tl.constexpr, K_BIAS: tl.constexpr, V_BIAS: tl.constexpr, THREE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One tile of one of the outputs. The loop stands here once for each, so that each weight keeps its own strides."""
    tile = tl.program_id(0)
    q_tiles = tl.cdiv(Q_N, BLOCK_N)
    k_tiles = tl.cdiv(K_N, BLOCK_N)
    if tile < q_tiles:
        project(
            tile, x_ptr, scale_ptr, q_ptr, q_bias_ptr, q_out_ptr, rows, K, Q_N, x_m, x_k, scale_k, q_n, q_k, q_bias_n,
            eps, OFFSET, Q_BIAS, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, STAGES,
        )  # fmt: skip
    elif tile < q_tiles + k_tiles:
        project(
            tile - q_tiles, x_ptr, scale_ptr, k_ptr, k_bias_ptr, k_out_ptr, rows, K, K_N, x_m, x_k, scale_k, k_n, k_k,
            k_bias_n, eps, OFFSET, K_BIAS, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, STAGES,
        )  # fmt: skip
    elif THREE:
        project(
            tile - q_tiles - k_tiles, x_ptr, scale_ptr, v_ptr, v_bias_ptr, v_out_ptr, rows, K, V_N, x_m, x_k, scale_k,
            v_n, v_k, v_bias_n, eps, OFFSET, V_BIAS, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, STAGES,
        )  # fmt: skip


def rms_norm_linears_decode(
    x: torch.Tensor,
    weight: torch.Tensor,
    projections: list[torch.Tensor],
    biases: list[torch.Tensor | None],
    eps: float,
    norm: str,
) -> list[torch.Tensor]:
    """``norm(x) @ w.T + b`` for each of two or three projections and at most 64 rows, as one Triton kernel.

    ``x``: ``[..., K]`` in bf16, fp16 or fp32; each of ``projections``: ``[N_i, K]`` and of ``biases``: ``[N_i]`` or
    None, in the dtype of ``x``; ``weight``: ``[K]`` in any of the three dtypes. Any strides. ``norm``: ``early``,
    ``late`` or ``offset``. Returns ``[..., N_i]`` in the dtype of ``x``, contiguous; repeated runs are bit-identical.
    fp32 uses TF32 only where ``torch.get_float32_matmul_precision()`` is not ``"highest"``.
    Raises ValueError for a count, shape, dtype, device or norm other than these.
    """
    hidden, sizes = _check(x, weight, projections, biases, norm)
    results = [x.new_empty((*x.shape[:-1], size)) for size in sizes]
    rows = x.numel() // hidden
    if rows == 0:
        return results
    linears_ = linears_kernel if INTERPRETED.value else wrap_triton(linears_kernel)  # a name: torch looks for these
    tiles = tiles_for(rows, x.dtype)
    tile = tiles.choose(sum(sizes), all(aligned(w) for w in projections), sm_count(x.device))
    flat = x.reshape(-1, hidden)
    q, k, v = projections[0], projections[1], projections[-1]
    q_bias, k_bias, v_bias = biases[0], biases[1], biases[-1]
    with on_device_of(x):
        linears_[(sum(triton.cdiv(size, tile.block_n) for size in sizes),)](
            flat, weight, q, k, v,
            q if q_bias is None else q_bias, k if k_bias is None else k_bias, v if v_bias is None else v_bias,
            results[0], results[1], results[-1],
            rows, hidden, sizes[0], sizes[1], sizes[-1], *flat.stride(), *weight.stride(),
            *q.stride(), *k.stride(), *v.stride(), *stride(q_bias), *stride(k_bias), *stride(v_bias), eps,
            OFFSET=norm == "offset", Q_BIAS=q_bias is not None, K_BIAS=k_bias is not None, V_BIAS=v_bias is not None,
            THREE=len(sizes) == MOST, PRECISION=precision(x.dtype), **launch_meta(tile),
        )  # fmt: skip
    return results


@functools.cache
def op() -> Any:
    """``torch.ops.fxfuse.rms_norm_linears_decode.default``, registered on the first call."""
    return register("rms_norm_linears_decode", rms_norm_linears_decode, _fake)


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    projections: list[torch.Tensor],
    biases: list[torch.Tensor | None],
    eps: float,
    norm: str,
) -> list[torch.Tensor]:
    _, sizes = _check(x, weight, projections, biases, norm)
    return [x.new_empty((*x.shape[:-1], size)) for size in sizes]


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    projections: list[torch.Tensor],
    biases: list[torch.Tensor | None],
    norm: str,
) -> tuple[int, list[int]]:
    """(hidden, rows of each weight), once everything is known to be what the kernel assumes."""
    check_choice("norm", norm, NORMS)
    check_dtype("x", x)
    if not 2 <= len(projections) <= MOST or len(biases) != len(projections):
        counts = f"{len(projections)} projections and {len(biases)} biases"
        raise ValueError(f"got {counts}, expected two or three, and a bias or None for each")
    if x.dim() == 0 or any(w.dim() != 2 for w in projections):
        raise ValueError(f"got x {list(x.shape)} and projections {[list(w.shape) for w in projections]}, "
                         "expected x [..., hidden] and projections [out, hidden]")  # fmt: skip
    # Weights do not change their shapes: where these are symbolic, int() makes them constants of the graph.
    hidden, sizes = int(projections[0].shape[1]), [int(w.shape[0]) for w in projections]
    if hidden == 0 or 0 in sizes:
        raise ValueError(f"hidden {hidden} and the projections' widths {sizes} must all be positive")
    if x.shape[-1] != hidden:
        raise ValueError(f"x has {x.shape[-1]} features, expected {hidden}, the columns of the projections")
    if x.numel() > MAX_ROWS * hidden:
        raise ValueError(f"x has {x.numel() // hidden} rows, expected at most {MAX_ROWS}")
    check_operand("weight", weight, (hidden,), x, same_dtype=False)
    for i, (w, bias, size) in enumerate(zip(projections, biases, sizes, strict=True)):
        check_operand(f"projections[{i}]", w, (size, hidden), x)
        check_operand(f"biases[{i}]", bias, (size,), x)
    return hidden, sizes
