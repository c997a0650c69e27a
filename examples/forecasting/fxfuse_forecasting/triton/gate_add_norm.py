"""`gate_add_norm` as one Triton kernel: one program normalises one row, which it keeps in registers.

Bytes: with ``e`` the item size and N the row, ``4 * N * e`` (packed 2N, skip N, result N) plus weight and bias out of
the L2 cache; nothing in between is stored. Statistics, gate and sum are fp32, and the result is rounded once.
"""

# mypy: allow-incomplete-defs
# Triton reads annotations: only its constants have one in a kernel.

import contextlib
import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

NAME = "fxfuse_forecasting::gate_add_norm"
GATES = ("glu", "sigmoid", "gtu")
# As it was when this module was imported, which is when triton.jit decides.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def narrow(v, dtype: tl.constexpr):
    """fp32 in ``dtype``, to nearest. The interpreter cuts bits off for bf16, so there they are rounded first."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = v.to(tl.int32, bitcast=True)
        v = tl.where(v == v, ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True), v)
    return v.to(dtype)


@triton.jit
def gate_add_norm_kernel(
    packed_ptr, skip_ptr, weight_ptr, bias_ptr, out_ptr, n, eps,
    TANH: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[row] = layer_norm(skip[row] + value[row] * sigmoid(gate[row])); packed rows hold value, then gate."""
    row = tl.program_id(0).to(tl.int64)  # int64: rows * n may pass 2^31
    i = tl.arange(0, BLOCK)
    inside = i < n
    value = tl.load(packed_ptr + row * 2 * n + i, inside, 0.0).to(tl.float32)
    gate = tl.load(packed_ptr + row * 2 * n + n + i, inside, 0.0).to(tl.float32)
    skip = tl.load(skip_ptr + row * n + i, inside, 0.0).to(tl.float32)
    if TANH:
        value = 2.0 * tl.sigmoid(2.0 * value) - 1.0
    h = skip + value * tl.sigmoid(gate)
    mean = tl.sum(h, 0) / n
    centred = tl.where(inside, h - mean, 0.0)
    factor = tl.rsqrt(tl.sum(centred * centred, 0) / n + eps)
    y = centred * factor * tl.load(weight_ptr + i, inside, 0.0).to(tl.float32)
    if BIAS:
        y += tl.load(bias_ptr + i, inside, 0.0).to(tl.float32)
    tl.store(out_ptr + row * n + i, narrow(y, out_ptr.dtype.element_ty), inside)


def launch_meta(n: int) -> dict[str, int]:
    """Block and warps for rows of ``n`` elements; computed, not measured."""
    block = triton.next_power_of_2(n)
    return {"BLOCK": block, "num_warps": min(max(block // 512, 1), 16)}


def gate_add_norm(
    packed: torch.Tensor,
    skip: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    gate: str,
) -> torch.Tensor:
    """``layer_norm(skip + gated)``; ``packed``: ``[..., 2 * N]``, ``skip``: ``[..., N]``. Any strides.

    Returns ``[..., N]``, contiguous, in the dtype that ``packed`` and ``skip`` promote to.
    Raises ValueError for another gate, or shapes that do not go together.
    """
    result = _result(packed, skip, weight, bias, eps, gate)
    n = int(weight.shape[0])  # a weight does not change its shape: where this is symbolic, it becomes a constant
    if result.numel() == 0:
        return result
    # A name, not a helper: torch finds a triton_op's kernels, for its cache keys, by the calls of wrap_triton.
    run = gate_add_norm_kernel if INTERPRETED.value else wrap_triton(gate_add_norm_kernel)
    with torch.cuda.device_of(packed) if torch.cuda.is_available() else contextlib.nullcontext():
        run[(result.numel() // n,)](
            packed.contiguous(), skip.contiguous(), weight.contiguous(),
            weight if bias is None else bias.contiguous(), result, n, eps,
            TANH=gate == "gtu", BIAS=bias is not None, **launch_meta(n),
        )  # fmt: skip
    return result


def _result(
    packed: torch.Tensor,
    skip: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    gate: str,
) -> torch.Tensor:
    """The empty result, once everything is known to be what the kernel assumes; also the op on fake tensors."""
    if gate not in GATES:
        raise ValueError(f"gate is {gate!r}, expected one of {', '.join(GATES)}")
    n = int(weight.shape[0])
    if packed.shape[-1] != 2 * n or skip.shape[-1] != n or packed.shape[:-1] != skip.shape[:-1]:
        raise ValueError(f"packed {list(packed.shape)} and skip {list(skip.shape)} do not fit a weight of {n} elements")
    if bias is not None and bias.shape != weight.shape:
        raise ValueError(f"bias has shape {tuple(bias.shape)}, expected {tuple(weight.shape)}")
    return packed.new_empty(skip.shape, dtype=torch.promote_types(packed.dtype, skip.dtype))


@functools.cache
def op() -> Any:
    """The op, registered on the first call.

    A ``triton_op``, into which Inductor sees. In Triton's interpreter ``wrap_triton`` refuses, so there it is an
    opaque custom op: the same kernel then runs on CPU tensors inside a compiled model.
    """
    if INTERPRETED.value:
        torch.library.custom_op(NAME, gate_add_norm, mutates_args=()).register_fake(_result)
    else:
        torch.library.triton_op(NAME, gate_add_norm, mutates_args=())
    return torch.ops.fxfuse_forecasting.gate_add_norm.default
