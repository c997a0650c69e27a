"""Implementations of the gated MLP's patterns: plain PyTorch, which the inner compiler fuses, and Triton.

`rms_norm_gated_mlp`, the same with the residual add behind it, and `gated_mlp`, which has no norm, differ by what
stands around one body, so most kernels are three functions of a line.

``plain`` reads the parameters as they are. On a CPU without bf16 instructions oneDNN's bf16 GEMM is several times
slower than fp32's (docs/architecture.md, "Kernels"), so there the projections are computed in fp32, straight from the
bf16 weights, without a second copy; one row is a reduction, which reads each weight once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from fxfuse.compat import cpu_multiplies_bf16, size_hint
from fxfuse.kernels.common import TRITON
from fxfuse.kernels.norms import normed
from fxfuse.kernels.registry import SiteFacts, kernel
from fxfuse.params import stack

PATTERN = "rms_norm_gated_mlp"
WITH_ADD = "rms_norm_gated_mlp_add"
BARE = "gated_mlp"
LOW = (torch.bfloat16, torch.float16)
GEMM_ROWS = 32
"""From here on the fp32 GEMM wins on a CPU without bf16 instructions (bench/cpu_rows.py --isa AVX512_CORE_VNNI)."""

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


def halves(t: Any, proj: str) -> tuple[Any, Any]:
    """Gate and up, from one projection's output [..., 2 * intermediate]."""
    parts = t.chunk(2, -1)
    return (parts[0], parts[1]) if proj != "packed_up_first" else (parts[1], parts[0])


def gated(
    h: Any, gate: Any, up: Any, gate_up: Any, down: Any,
    gate_bias: Any, up_bias: Any, gate_up_bias: Any, down_bias: Any, proj: str, act: str,
) -> Any:  # fmt: skip
    """``down(act(gate(h)) * up(h))``, the reference's operations in the reference's order."""
    if proj == "separate":
        g, u = F.linear(h, gate, gate_bias), F.linear(h, up, up_bias)
    else:
        g, u = halves(F.linear(h, gate_up, gate_up_bias), proj)
    return F.linear(ACTIVATIONS[act](g) * u, down, down_bias)


@kernel(PATTERN, name="plain", backward="autograd", default=True)
def plain(
    x: Any, weight: Any, gate: Any, up: Any, gate_up: Any, down: Any,
    gate_bias: Any, up_bias: Any, gate_up_bias: Any, down_bias: Any,
    *, eps: Any, norm: str, proj: str, act: str,
) -> Any:  # fmt: skip
    """Bit-equal to eager where eager is deterministic."""
    h = normed(x, weight, eps, norm)
    return gated(h, gate, up, gate_up, down, gate_bias, up_bias, gate_up_bias, down_bias, proj, act)


@kernel(WITH_ADD, name="plain", backward="autograd", default=True)
def plain_with_add(
    x: Any, residual: Any, weight: Any, gate: Any, up: Any, gate_up: Any, down: Any,
    gate_bias: Any, up_bias: Any, gate_up_bias: Any, down_bias: Any,
    *, eps: Any, norm: str, proj: str, act: str,
) -> Any:  # fmt: skip
    """Bit-equal to eager where eager is deterministic."""
    h = normed(x, weight, eps, norm)
    return residual + gated(h, gate, up, gate_up, down, gate_bias, up_bias, gate_up_bias, down_bias, proj, act)


@kernel(BARE, name="plain", backward="autograd", default=True)
def plain_bare(
    x: Any, gate: Any, up: Any, gate_up: Any, down: Any,
    gate_bias: Any, up_bias: Any, gate_up_bias: Any, down_bias: Any, *, proj: str, act: str,
) -> Any:  # fmt: skip
    """Bit-equal to eager where eager is deterministic."""
    return gated(x, gate, up, gate_up, down, gate_bias, up_bias, gate_up_bias, down_bias, proj, act)


STACKED: dict[str, Any] = {"backward": "autograd", "default": True, "variants": {"proj": {"separate"}}}
ROWS = {"rows": stack("gate", "up")}
BIASED = {**ROWS, "bias": stack("gate_bias", "up_bias")}


def _one_gemm(h: Any, rows: Any, bias: Any, down: Any, down_bias: Any, act: str) -> Any:
    g, u = halves(F.linear(h, rows, bias), "packed")
    return F.linear(ACTIVATIONS[act](g) * u, down, down_bias)


@kernel(PATTERN, name="stacked", derive=ROWS, **STACKED)
def stacked(x: Any, weight: Any, rows: Any, down: Any, down_bias: Any, *, eps: Any, norm: str, act: str) -> Any:
    """One GEMM for gate and up over their stacked weight [2 * intermediate, hidden]."""
    return _one_gemm(normed(x, weight, eps, norm), rows, None, down, down_bias, act)


@kernel(PATTERN, name="stacked_biased", derive=BIASED, **STACKED)
def stacked_biased(
    x: Any, weight: Any, rows: Any, bias: Any, down: Any, down_bias: Any, *, eps: Any, norm: str, act: str
) -> Any:
    """The same with stacked biases [2 * intermediate]."""
    return _one_gemm(normed(x, weight, eps, norm), rows, bias, down, down_bias, act)


@kernel(BARE, name="stacked", derive=ROWS, **STACKED)
def stacked_bare(x: Any, rows: Any, down: Any, down_bias: Any, *, act: str) -> Any:
    """One GEMM for gate and up over their stacked weight [2 * intermediate, hidden]."""
    return _one_gemm(x, rows, None, down, down_bias, act)


@kernel(BARE, name="stacked_biased", derive=BIASED, **STACKED)
def stacked_biased_bare(x: Any, rows: Any, bias: Any, down: Any, down_bias: Any, *, act: str) -> Any:
    """The same with stacked biases [2 * intermediate]."""
    return _one_gemm(x, rows, bias, down, down_bias, act)


def _slow_bf16(facts: SiteFacts) -> str | None:
    if cpu_multiplies_bf16():
        return "needs a CPU without bf16 instructions; this one has them"
    rows = size_hint(facts.rows)
    if rows is not None and 1 < rows < GEMM_ROWS:
        return f"needs 1 row or at least {GEMM_ROWS}; the site has {rows}"
    return None


def _wide(x: Any, weight: Any, bias: Any, one_row: bool) -> Any:
    """``linear`` of low-precision operands, computed in fp32 and rounded once."""
    if one_row:
        y = (weight.float() * x.float().reshape(-1)).sum(-1).reshape(*x.shape[:-1], -1)
    else:
        y = F.linear(x.float(), weight.float())
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype)


@kernel(PATTERN, name="cpu_fp32_gemm", device="cpu", dtypes=LOW, when=_slow_bf16, backward="autograd", default=True)
def cpu_fp32_gemm(
    x: Any, weight: Any, gate: Any, up: Any, gate_up: Any, down: Any,
    gate_bias: Any, up_bias: Any, gate_up_bias: Any, down_bias: Any,
    *, eps: Any, norm: str, proj: str, act: str,
) -> Any:  # fmt: skip
    """fp32 GEMMs from bf16 weights; less rounding than eager, no second copy of any weight."""
    h = normed(x, weight, eps, norm)
    sizes = x.shape[:-1]
    one_row = isinstance(sizes, tuple) and all(isinstance(s, int) for s in sizes) and _product(sizes) == 1
    if proj == "separate":
        g, u = _wide(h, gate, gate_bias, one_row), _wide(h, up, up_bias, one_row)
    else:
        g, u = halves(_wide(h, gate_up, gate_up_bias, one_row), proj)
    return _wide(ACTIVATIONS[act](g) * u, down, down_bias, one_row)


def _product(sizes: Any) -> int:
    return functools.reduce(lambda a, b: a * b, sizes, 1)


def _rows_op() -> Any:
    from fxfuse.kernels.triton.norm_gated_mlp_decode import op  # imports Triton, so not before it is needed

    return op()


SEPARATE: dict[str, Any] = {**TRITON, "op": _rows_op, "variants": {"proj": {"separate"}}}


@kernel(PATTERN, name="triton_decode", rows=(0, 16), **SEPARATE)
def triton_decode(
    x: Any, weight: Any, gate: Any, up: Any, down: Any, gate_bias: Any, up_bias: Any, down_bias: Any,
    *, eps: float, norm: str, act: str,
) -> Any:  # fmt: skip
    """At most 16 rows: two Triton kernels, each weight read once, as it is (kernels/triton/)."""
    return _rows_op()(x, weight, gate, up, down, gate_bias, up_bias, down_bias, eps, norm, act)


@kernel(PATTERN, name="triton_64_rows", rows=(17, 64), **SEPARATE)
def triton_64_rows(
    x: Any, weight: Any, gate: Any, up: Any, down: Any, gate_bias: Any, up_bias: Any, down_bias: Any,
    *, eps: float, norm: str, act: str,
) -> Any:  # fmt: skip
    """17 to 64 rows: the same with wider tiles."""
    return _rows_op()(x, weight, gate, up, down, gate_bias, up_bias, down_bias, eps, norm, act)


@kernel(WITH_ADD, name="triton_decode", rows=(0, 16), **SEPARATE)
def triton_decode_with_add(
    x: Any, residual: Any, weight: Any, gate: Any, up: Any, down: Any, gate_bias: Any, up_bias: Any, down_bias: Any,
    *, eps: float, norm: str, act: str,
) -> Any:  # fmt: skip
    """At most 16 rows: the residual is added where the down projection, or its reduction, ends."""
    return _rows_op()(x, weight, gate, up, down, gate_bias, up_bias, down_bias, eps, norm, act, residual)


@kernel(WITH_ADD, name="triton_64_rows", rows=(17, 64), **SEPARATE)
def triton_64_rows_with_add(
    x: Any, residual: Any, weight: Any, gate: Any, up: Any, down: Any, gate_bias: Any, up_bias: Any, down_bias: Any,
    *, eps: float, norm: str, act: str,
) -> Any:  # fmt: skip
    """17 to 64 rows: the same with wider tiles."""
    return _rows_op()(x, weight, gate, up, down, gate_bias, up_bias, down_bias, eps, norm, act, residual)


@kernel(BARE, name="triton_decode", rows=(0, 16), **SEPARATE)
def triton_decode_bare(
    x: Any, gate: Any, up: Any, down: Any, gate_bias: Any, up_bias: Any, down_bias: Any, *, act: str
) -> Any:
    """At most 16 rows: two Triton kernels, each weight read once, as it is (kernels/triton/)."""
    return _rows_op()(x, None, gate, up, down, gate_bias, up_bias, down_bias, 0.0, "none", act)


@kernel(BARE, name="triton_64_rows", rows=(17, 64), **SEPARATE)
def triton_64_rows_bare(
    x: Any, gate: Any, up: Any, down: Any, gate_bias: Any, up_bias: Any, down_bias: Any, *, act: str
) -> Any:
    """17 to 64 rows: the same with wider tiles."""
    return _rows_op()(x, None, gate, up, down, gate_bias, up_bias, down_bias, 0.0, "none", act)


def _prefill_op() -> Any:
    from fxfuse.kernels.triton.gated_mlp_prefill import op

    return op()


MANY_ROWS: dict[str, Any] = {**SEPARATE, "op": _prefill_op, "rows": (65, 2**31 - 1)}


@kernel(PATTERN, name="triton_prefill", **MANY_ROWS)
def triton_prefill(
    x: Any, weight: Any, gate: Any, up: Any, down: Any, gate_bias: Any, up_bias: Any, down_bias: Any,
    *, eps: float, norm: str, act: str,
) -> Any:  # fmt: skip
    """From 65 rows on: norm, gate, up and activation around one persistent GEMM; the down projection is PyTorch's."""
    return F.linear(_prefill_op()(x, weight, gate, up, gate_bias, up_bias, eps, norm, act), down, down_bias)


@kernel(BARE, name="triton_prefill", **MANY_ROWS)
def triton_prefill_bare(
    x: Any, gate: Any, up: Any, down: Any, gate_bias: Any, up_bias: Any, down_bias: Any, *, act: str
) -> Any:
    """From 65 rows on: gate, up and activation around one persistent GEMM; the down projection is PyTorch's."""
    return F.linear(_prefill_op()(x, None, gate, up, gate_bias, up_bias, 0.0, "none", act), down, down_bias)
