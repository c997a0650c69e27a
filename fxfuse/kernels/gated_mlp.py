"""Implementations of `rms_norm_gated_mlp` in plain PyTorch, which the inner compiler fuses, and in Triton.

``plain`` reads the parameters as they are. On a CPU without bf16 instructions oneDNN's bf16 GEMM is several times
slower than fp32's (docs/architecture.md, "Kernels"), so there the projections are computed in fp32, straight from the
bf16 weights, without a second copy; one row is a reduction, which reads each weight once.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from fxfuse.compat import cpu_multiplies_bf16, size_hint
from fxfuse.kernels.registry import SiteFacts, kernel
from fxfuse.params import stack

PATTERN = "rms_norm_gated_mlp"
LOW = (torch.bfloat16, torch.float16)
GEMM_ROWS = 32
"""From here on the fp32 GEMM wins on a CPU without bf16 instructions (bench/cpu_rows.py --isa AVX512_CORE_VNNI)."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # then Triton kernels run on CPU tensors

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


def normed(x: Any, weight: Any, eps: Any, norm: str) -> Any:
    """RMSNorm of ``x`` [..., hidden] in fp32, rounded where the variant rounds."""
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    if norm == "early":
        return weight * h.to(x.dtype)
    if norm == "late":
        return (weight * h).to(x.dtype)
    return (h * (1.0 + weight.float())).to(x.dtype)


def halves(t: Any, proj: str) -> tuple[Any, Any]:
    """Gate and up, from one projection's output [..., 2 * intermediate]."""
    parts = t.chunk(2, -1)
    return (parts[0], parts[1]) if proj != "packed_up_first" else (parts[1], parts[0])


@kernel(PATTERN, name="plain", backward="autograd", default=True)
def plain(
    x: Any, weight: Any, gate: Any, up: Any, gate_up: Any, down: Any,
    gate_bias: Any, up_bias: Any, gate_up_bias: Any, down_bias: Any,
    *, eps: Any, norm: str, proj: str, act: str,
) -> Any:  # fmt: skip
    """The reference's operations in the reference's order: bit-equal to eager where eager is deterministic."""
    h = normed(x, weight, eps, norm)
    if proj == "separate":
        g, u = F.linear(h, gate, gate_bias), F.linear(h, up, up_bias)
    else:
        g, u = halves(F.linear(h, gate_up, gate_up_bias), proj)
    return F.linear(ACTIVATIONS[act](g) * u, down, down_bias)


STACKED: dict[str, Any] = {"backward": "autograd", "default": True, "variants": {"proj": {"separate"}}}


@kernel(PATTERN, name="stacked", derive={"rows": stack("gate", "up")}, **STACKED)
def stacked(x: Any, weight: Any, rows: Any, down: Any, down_bias: Any, *, eps: Any, norm: str, act: str) -> Any:
    """One GEMM for gate and up over their stacked weight [2 * intermediate, hidden]."""
    return stacked_biased(x, weight, rows, None, down, down_bias, eps=eps, norm=norm, act=act)


BIASED = {"rows": stack("gate", "up"), "bias": stack("gate_bias", "up_bias")}


@kernel(PATTERN, name="stacked_biased", derive=BIASED, **STACKED)
def stacked_biased(
    x: Any, weight: Any, rows: Any, bias: Any, down: Any, down_bias: Any, *, eps: Any, norm: str, act: str
) -> Any:
    """The same with stacked biases [2 * intermediate]."""
    g, u = halves(F.linear(normed(x, weight, eps, norm), rows, bias), "packed")
    return F.linear(ACTIVATIONS[act](g) * u, down, down_bias)


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


def _literal_eps(facts: SiteFacts) -> str | None:
    return "needs a literal eps; the site's is symbolic" if "eps" in facts.symbolic_scalars else None


def _decode_op() -> Any:
    from fxfuse.kernels.triton.norm_gated_mlp_decode import op  # imports Triton, so not before it is needed

    return op()


@kernel(PATTERN, name="triton_decode", op=_decode_op, device=("cpu",) if INTERPRETED else ("cuda",),
        capability=None if INTERPRETED else (8, 0), rows=(0, 16), variants={"proj": {"separate"}},
        dtypes=(torch.bfloat16, torch.float16, torch.float32), when=_literal_eps)  # fmt: skip
def triton_decode(
    x: Any, weight: Any, gate: Any, up: Any, down: Any, gate_bias: Any, up_bias: Any, down_bias: Any,
    *, eps: float, norm: str, act: str,
) -> Any:  # fmt: skip
    """At most 16 rows: two Triton kernels, each weight read once, as it is (kernels/triton/)."""
    return _decode_op()(x, weight, gate, up, down, gate_bias, up_bias, down_bias, eps, norm, act)
