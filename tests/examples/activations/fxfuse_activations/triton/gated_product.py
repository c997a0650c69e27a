"""`gated_product` as one Triton kernel: three streams, fp32 between, one rounding."""

import contextlib

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
BLOCK = 1024


@triton.jit
def narrow(v, dtype: tl.constexpr):
    """fp32 in ``dtype``, to nearest. The interpreter cuts bits off for bf16, so there they are rounded first."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = v.to(tl.int32, bitcast=True)
        v = tl.where(v == v, ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True), v)
    return v.to(dtype)


@triton.jit
def gated_product_kernel(gate_ptr, up_ptr, out_ptr, size, SILU: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gate_ptr + i, i < size, 0.0).to(tl.float32)
    u = tl.load(up_ptr + i, i < size, 0.0).to(tl.float32)
    if SILU:
        a = g * tl.sigmoid(g)
    else:
        a = g * tl.sigmoid(1.5957691216057308 * (g + 0.044715 * g * g * g))
    tl.store(out_ptr + i, narrow(a * u, out_ptr.dtype.element_ty), i < size)


def _product(gate: torch.Tensor, up: torch.Tensor, silu: bool) -> torch.Tensor:
    out = torch.empty_like(gate)  # in the order in which the gate is stored, as PyTorch's own product
    if out.numel() == 0:
        return out
    dense = out if out.is_contiguous() else torch.empty_like(gate, memory_format=torch.contiguous_format)
    run = gated_product_kernel if INTERPRETED.value else wrap_triton(gated_product_kernel)
    with torch.cuda.device_of(gate) if torch.cuda.is_available() else contextlib.nullcontext():
        run[(triton.cdiv(out.numel(), BLOCK),)](
            gate.contiguous(), up.contiguous(), dense, out.numel(), SILU=silu, BLOCK=BLOCK
        )
    return out if dense is out else out.copy_(dense)


if INTERPRETED.value:
    op = torch.library.custom_op("fxfuse_activations::product", _product, mutates_args=())
    op.register_fake(lambda gate, up, silu: torch.empty_like(gate))
else:
    op = torch.library.triton_op("fxfuse_activations::product", _product, mutates_args=())


def gated_product(gate, up, *, act):
    """What the pattern's kernel is."""
    return op(gate, up, act == "silu")
