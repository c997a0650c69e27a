"""What a CPU does that Inductor does not do by itself: fp32 GEMMs from bf16 weights, a reduction for one row, panels.

Without bf16 instructions oneDNN's bf16 GEMM is several times slower than fp32's, so the projections are computed in
fp32, straight from the bf16 weights, without a second copy; one row is a reduction, which reads each weight once.
MKL and oneDNN reorder a weight on each call, which is what a GEMM of few rows waits for: fxfuse's own (`panels.py`)
reorders it piece by piece in cache. Kept panels spare that as well; they are a second copy, so they are taken only
where `extra_memory` grants it. oneDNN's packed weights are there by name: they sum in one go, with more error than
eager.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from fxfuse.compat import can_pack_linear, cpu_multiplies_bf16, size_hint
from fxfuse.kernels.facts import SiteFacts
from fxfuse.kernels.panels import kept_panel_linear, panel_linear
from fxfuse.kernels.panels import register as register_panels
from fxfuse.kernels.panels import unavailable as panels_unavailable
from fxfuse.params import Transform, cast, pack
from fxfuse.params.packing import BLOCK, packed_linear, register

LOW = (torch.bfloat16, torch.float16)
GEMM_ROWS = 32
"""From here on the fp32 GEMM wins on a CPU without bf16 instructions (bench/cpu_rows.py --isa AVX512_CORE_VNNI)."""
PACKED_ROWS = (16, 64)
"""Where packed weights win, measured at both ends (docs/weights.md). With one row memory is all that counts."""
PACKED_LOW_ROWS = (16, 64)
"""The same against a bf16 GEMM without bf16 instructions."""


def slow_bf16(facts: SiteFacts) -> str | None:
    """Why fp32 arithmetic on low-precision weights does not pay at a site, or None."""
    if cpu_multiplies_bf16():
        return "needs a CPU without bf16 instructions; this one has them"
    rows = size_hint(facts.rows)
    if rows is not None and 1 < rows < GEMM_ROWS:
        return f"needs 1 row or at least {GEMM_ROWS}; the site has {rows}"
    return None


def wide_linear(x: Any, weight: Any, bias: Any) -> Any:
    """``linear`` of low-precision operands, computed in fp32 and rounded once; a reduction where there is one row."""
    if _is_one_row(x):
        y = (weight.float() * x.float().reshape(-1)).sum(-1).reshape(*x.shape[:-1], -1)
    else:
        y = F.linear(x.float(), weight.float())
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype)


def _is_one_row(x: Any) -> bool:
    sizes = x.shape[:-1]
    return isinstance(sizes, tuple) and all(isinstance(s, int) for s in sizes) and math.prod(sizes) == 1


WIDE: dict[str, Any] = {"device": "cpu", "dtypes": LOW, "when": slow_bf16, "backward": "autograd", "default": True}


# panels

PANEL_ROWS = (2, 64)
"""Where the panels of a fp32 weight win over MKL's GEMM (docs/weights.md)."""
KEPT_ROWS = (2, 64)
"""Where it pays to keep them."""
LOW_ROWS = (1, 2**31 - 1)
"""The same of a bf16 weight, without bf16 instructions: everywhere."""


def panels_low(facts: SiteFacts) -> str | None:
    """Why fp32 arithmetic on low-precision weights cannot run in panels at a site, or does not pay there; or None."""
    if cpu_multiplies_bf16():
        return "needs a CPU without bf16 instructions; this one has them"
    return panels_fit(facts)


def panels_fit(facts: SiteFacts) -> str | None:
    """Why the operands of a site cannot be taken in panels, or None."""
    for name, tensors in facts.operands.items():
        for tensor in tensors:
            if tensor.dtype not in (torch.float32, *LOW):
                return f"needs {name} in fp32, bf16 or fp16; the site has it in {tensor.dtype}"
    return panels_unavailable()


def low_linear(x: Any, weight: Any, bias: Any) -> Any:
    """`linear` in fp32 of operands in any of the dtypes, in panels; the result is fp32."""
    return panel_linear(x.float(), weight, bias if bias is None else bias.float())


def kept_linear(x: Any, kept: Any, bias: Any, rows: int) -> Any:
    """The same with kept panels of a weight of so many rows."""
    return kept_panel_linear(x.float(), kept, bias if bias is None else bias.float(), rows)


_OWN: dict[str, Any] = {"device": "cpu", "op": register_panels, "dtypes": (torch.float32,), "when": panels_fit}
PANELS: dict[str, dict[str, Any]] = {
    "cpu_panels": {**_OWN, "rows": PANEL_ROWS},
    "cpu_panels_fp32": {**_OWN, "dtypes": LOW, "rows": LOW_ROWS, "when": panels_low, "default": True},
}
"""Two kernels from one function. For fp32 weights it runs when named, or where `fxfuse tune` measured that it wins; for
low-precision ones on a CPU that multiplies them slowly it is the default."""
KEPT_PANELS: dict[str, Any] = {**_OWN, "name": "cpu_kept_panels", "rows": KEPT_ROWS, "default": True}


# packed weights


def packs(facts: SiteFacts) -> str | None:
    """Why a site's weights do not fill oneDNN's blocks, so that packing them would take more than they do; or None."""
    problem = can_pack_linear()
    if problem is not None:
        return f"needs oneDNN's packed linear; {problem}"
    for name, tensors in facts.operands.items():
        for shape in (tuple(t.shape) for t in tensors if t.ndim == 2 and name not in ("x", "residual")):
            if not all(isinstance(size, int) and size % block == 0 for size, block in zip(shape, BLOCK, strict=True)):
                return f"needs weights (multiple of {BLOCK[0]}, multiple of {BLOCK[1]}); the site has {name} {shape}"
    return None


def packs_low(facts: SiteFacts) -> str | None:
    """The same where the weights are packed as fp32, which only a CPU without bf16 instructions wants."""
    if cpu_multiplies_bf16():
        return "needs a CPU without bf16 instructions; this one has them"
    return packs(facts)


def packed(weight: str | Transform) -> Transform:
    """A weight of any of the dtypes as a packed fp32 one. The cast of an fp32 weight is that weight."""
    return pack(cast(weight, torch.float32))


_ANY: dict[str, Any] = {"device": "cpu", "op": register}
PACKED: dict[str, dict[str, Any]] = {
    "cpu_packed": {**_ANY, "dtypes": (torch.float32,), "rows": PACKED_ROWS, "when": packs},
    "cpu_packed_fp32": {**_ANY, "dtypes": LOW, "rows": PACKED_LOW_ROWS, "when": packs_low},
}
"""Two kernels from one function: for fp32 weights, and for low-precision ones that are packed as fp32."""


def linear_of_packed(h: Any, handle: Any, bias: Any, rows: int) -> Any:
    """``linear`` in fp32 with a packed weight, of an input in any of the dtypes; the result is fp32."""
    return packed_linear(h.float(), handle, bias if bias is None else bias.float(), rows)
