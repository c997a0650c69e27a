"""A linear for CPUs with AVX-512 that takes its weight in panels which stay in cache (`cpp/panels.cpp`).

MKL and oneDNN reorder a whole weight before they multiply, which few rows of input do not pay for, and without bf16
instructions they multiply bf16 slowly. This one computes in fp32 and reorders (and widens) a panel of a weight just
before it is used. Where memory for a second copy is granted, the panels are kept (`fxfuse.params.panels`).

The inner compiler's own C++ compiler makes it, once; its cache keeps it.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxfuse.compat import compile_cpp
from fxfuse.params.packing import PANEL

SOURCE = Path(__file__).parent / "cpp" / "panels.cpp"
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
KEPT = 3  # the weight lies in panels


log = logging.getLogger("fxfuse")


def unavailable() -> str | None:
    """Why this CPU cannot run the kernel, or None."""
    found = torch.backends.cpu.get_cpu_capability()
    return None if found == "AVX512" else f"needs AVX-512; torch uses {found} on this CPU"


@functools.cache
def _function() -> Any:
    log.info("building %s with Inductor's C++ compiler, unless its cache has it", SOURCE.name)
    function = compile_cpp(SOURCE.read_text(encoding="utf-8")).fxfuse_linear
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, pointer, number, number, pointer, pointer, pointer, number, number, number, number]
    function.restype = None
    return function


def panel_linear(x: Any, weight: Any, bias: Any) -> Any:
    """`linear` of a float32 input (..., in) with a weight (out, in) in any of the dtypes; the result is float32."""
    register()
    return torch.ops.fxfuse.panel_linear(x, weight, bias)


def kept_panel_linear(x: Any, panels: Any, bias: Any, rows: int) -> Any:
    """The same with a weight of so many rows that `fxfuse.params.panels` reordered."""
    register()
    return torch.ops.fxfuse.kept_panel_linear(x, panels, bias, rows)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.dtype not in TYPES or weight.ndim != 2:
        raise RuntimeError(f"panel_linear was given a weight {_form(weight)}; it takes fp32, bf16 and fp16 (out, in)")
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    return _run(x, weight, TYPES[weight.dtype], weight.stride(0) * weight.itemsize, bias, *weight.shape)


def _kept_linear(x: Tensor, panels: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    expected = (-(-rows // PANEL), x.shape[-1], PANEL)
    if panels.dtype != torch.float32 or tuple(panels.shape) != expected:
        raise RuntimeError(f"kept_panel_linear was given panels {_form(panels)}; they must be torch.float32 {expected}")
    return _run(x, panels.contiguous(), KEPT, 0, bias, rows, x.shape[-1])


def _run(x: Tensor, weight: Tensor, kind: int, row_bytes: int, bias: Tensor | None, n: int, k: int) -> Tensor:
    if x.dtype != torch.float32 or x.shape[-1] != k:
        raise RuntimeError(f"the linear was given an input {_form(x)}; it must be torch.float32 (..., {k})")
    if bias is not None and (bias.dtype != torch.float32 or tuple(bias.shape) != (n,)):
        raise RuntimeError(f"the linear was given a bias {_form(bias)}; it must be torch.float32 ({n},)")
    x, bias = x.contiguous(), None if bias is None else bias.contiguous()
    m = math.prod(x.shape[:-1])
    y, ordered = x.new_empty((*x.shape[:-1], n)), x.new_empty(m * k)
    if m and n:
        _function()(
            x.data_ptr(), weight.data_ptr(), kind, row_bytes, None if bias is None else bias.data_ptr(),
            y.data_ptr(), ordered.data_ptr(), m, n, k, torch.get_num_threads(),
        )  # fmt: skip
    return y


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


@functools.cache
def register() -> torch.library.Library:
    """The ops and what they call, made once; a compiled graph out of a cache needs them, too.

    Raises whatever keeps the inner compiler's C++ compiler from building it.
    """
    _function()
    library = torch.library.Library("fxfuse", "FRAGMENT")
    tags = (torch.Tag.pt2_compliant_tag,)
    library.define("panel_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", tags=tags)
    library.define("kept_panel_linear(Tensor x, Tensor panels, Tensor? bias, SymInt rows) -> Tensor", tags=tags)
    library.impl("panel_linear", _linear, "CPU")
    library.impl("kept_panel_linear", _kept_linear, "CPU")
    torch.library.register_fake(
        "fxfuse::panel_linear", lambda x, weight, bias: x.new_empty((*x.shape[:-1], weight.shape[0])), lib=library
    )
    torch.library.register_fake(
        "fxfuse::kept_panel_linear", lambda x, panels, bias, rows: x.new_empty((*x.shape[:-1], rows)), lib=library
    )
    return library
