"""What the kernels share: rounding, dot products, activations, and what a launch asks of its tensors."""

# mypy: allow-incomplete-defs
# Triton reads annotations: only its constants have one in a kernel.

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

NORMS = ("early", "late", "offset")
ACTS = ("silu", "gelu", "gelu_tanh", "relu")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# As it was when this module was imported, which is when triton.jit decides.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def activation(g, ACT: tl.constexpr):
    if ACT == "silu":
        y = g * tl.sigmoid(g)
    elif ACT == "gelu":
        y = 0.5 * g * (1.0 + tl.erf(g * 0.7071067811865476))
    elif ACT == "gelu_tanh":
        y = g * tl.sigmoid(1.5957691216057308 * (g + 0.044715 * g * g * g))  # 0.5 * (1 + tanh(z)) = sigmoid(2z)
    else:
        y = tl.where(g <= 0.0, 0.0, g)  # not a maximum, which would turn NaN into 0
    return y


@triton.jit
def round_to(v, DROPPED: tl.constexpr):
    """Round fp32 to the nearest number without its DROPPED lowest bits (ties to even). Keeps NaN."""
    bits = v.to(tl.int32, bitcast=True)
    rounded = (bits + (1 << (DROPPED - 1)) - 1 + ((bits >> DROPPED) & 1)) & -(1 << DROPPED)
    return tl.where(v == v, rounded.to(tl.float32, bitcast=True), v)


@triton.jit
def narrow(v, dtype: tl.constexpr):
    """fp32 in ``dtype``, to nearest. The interpreter cuts bits off for bf16, so there they are rounded first."""
    if INTERPRETED and dtype == tl.bfloat16:
        v = round_to(v, 16)
    return v.to(dtype)


@triton.jit
def dot(w, x, acc, PRECISION: tl.constexpr):
    """``acc + w @ x``. In TF32 the tensor core cuts fp32's low bits off, so they are rounded first."""
    if PRECISION == "tf32":
        if w.dtype == tl.float32:
            w = round_to(w, 13)
        if x.dtype == tl.float32:
            x = round_to(x, 13)
    # The interpreter would multiply bf16 as the integers that it stores them in; in fp32 the products are exact.
    if INTERPRETED or w.dtype != x.dtype:
        w = w.to(tl.float32)
        x = x.to(tl.float32)
    return tl.dot(w, x, acc, input_precision=PRECISION)


def precision(dtype: torch.dtype) -> str:
    """``tl.dot``'s input precision. fp16's products are exact in TF32; AMD's fp32 matrix cores need no shortcut."""
    if torch.version.hip is not None:
        return "ieee"
    if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return "ieee"
    return "tf32"


def register(name: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register a function that launches kernels as the op ``fxfuse::name``, and return its default overload.

    A ``triton_op``, into which Inductor sees. In Triton's interpreter ``wrap_triton`` refuses, so there it is an opaque
    custom op with this ``fake``: the same kernels then run on CPU tensors inside a compiled model.
    """
    if INTERPRETED.value:
        torch.library.custom_op(f"fxfuse::{name}", function, mutates_args=()).register_fake(fake)
    else:
        torch.library.triton_op(f"fxfuse::{name}", function, mutates_args=())
    return getattr(torch.ops.fxfuse, name).default


def stride(bias: torch.Tensor | None) -> tuple[int, ...]:
    """The strides of an optional operand, as kernels take them."""
    return (0,) if bias is None else bias.stride()


def aligned(weight: torch.Tensor) -> bool:
    """Whether Triton will read the weight 16 bytes at a time; it knows of sizes only that they are multiples of 16."""
    whole = all(size % 16 == 0 for size in (weight.shape[1], weight.stride(0)))
    return whole and weight.stride(1) == 1 and weight.storage_offset() * weight.element_size() % 16 == 0


def on_device_of(x: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launches go to the current device, so it has to be that of ``x``."""
    return torch.cuda.device_of(x) if torch.cuda.is_available() else contextlib.nullcontext()


@functools.cache
def sm_count(device: torch.device) -> int:
    """The card's SMs (compute units); an H200's where there is no card, as in the interpreter."""
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 132


def check_choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    """Raise ValueError for an attribute that no kernel has."""
    if value not in valid:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(valid)}")


def check_dtype(name: str, tensor: torch.Tensor) -> None:
    """Raise ValueError for a dtype that no kernel has."""
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{name} is {tensor.dtype}, expected one of {', '.join(map(str, DTYPES))}")


def check_operand(
    name: str, tensor: torch.Tensor | None, shape: tuple[Any, ...], x: torch.Tensor, *, same_dtype: bool = True
) -> None:
    """Raise ValueError where an operand is not of this shape, or not of the device (and dtype) of ``x``."""
    if tensor is None:
        return
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}, expected {x.device} as x")
    if not same_dtype:
        check_dtype(name, tensor)
    elif tensor.dtype != x.dtype:
        raise ValueError(f"{name} is {tensor.dtype}, expected {x.dtype} as x")
