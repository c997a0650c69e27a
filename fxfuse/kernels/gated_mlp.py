"""Implementations of the gated MLP's patterns: plain PyTorch, which the inner compiler fuses, and Triton.

`rms_norm_gated_mlp`, the same with the residual add behind it, and `gated_mlp`, which has no norm, differ by what
stands around one body, so most kernels are three functions of a line.

``plain`` reads the parameters as they are; what a CPU can do better is in `cpu.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

from fxfuse.kernels.common import TRITON
from fxfuse.kernels.cpu import (
    KEPT_PANELS,
    PACKED,
    PANELS,
    WIDE,
    kept_linear,
    linear_of_packed,
    low_linear,
    packed,
    wide_linear,
)  # fmt: skip
from fxfuse.kernels.norms import normed
from fxfuse.kernels.registry import kernel
from fxfuse.params import panels, stack

PATTERN = "rms_norm_gated_mlp"
WITH_ADD = "rms_norm_gated_mlp_add"
BARE = "gated_mlp"

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


def _by(
    linear: Callable[[Any, Any, Any], Any], h: Any, gate: Any, up: Any, gate_up: Any, down: Any,
    gate_bias: Any, up_bias: Any, gate_up_bias: Any, down_bias: Any, proj: str, act: str,
) -> Any:  # fmt: skip
    """The MLP with this function for its projections."""
    if proj == "separate":
        g, u = linear(h, gate, gate_bias), linear(h, up, up_bias)
    else:
        g, u = halves(linear(h, gate_up, gate_up_bias), proj)
    return linear(ACTIVATIONS[act](g) * u, down, down_bias)


@kernel(PATTERN, name="cpu_fp32_gemm", **WIDE)
def cpu_fp32_gemm(
    x: Any, weight: Any, gate: Any, up: Any, gate_up: Any, down: Any,
    gate_bias: Any, up_bias: Any, gate_up_bias: Any, down_bias: Any,
    *, eps: Any, norm: str, proj: str, act: str,
) -> Any:  # fmt: skip
    """fp32 GEMMs from bf16 weights; less rounding than eager, no second copy of any weight."""
    h = normed(x, weight, eps, norm)
    return _by(wide_linear, h, gate, up, gate_up, down, gate_bias, up_bias, gate_up_bias, down_bias, proj, act)


@kernel(BARE, name="cpu_fp32_gemm", **WIDE)
def cpu_fp32_gemm_bare(
    x: Any, gate: Any, up: Any, gate_up: Any, down: Any,
    gate_bias: Any, up_bias: Any, gate_up_bias: Any, down_bias: Any, *, proj: str, act: str,
) -> Any:  # fmt: skip
    """fp32 GEMMs from bf16 weights; less rounding than eager, no second copy of any weight."""
    return _by(wide_linear, x, gate, up, gate_up, down, gate_bias, up_bias, gate_up_bias, down_bias, proj, act)


# panels: fxfuse's own GEMM, from the weights as they are, and from kept ones


def cpu_panels(
    x: Any, weight: Any, gate: Any, up: Any, gate_up: Any, down: Any,
    gate_bias: Any, up_bias: Any, gate_up_bias: Any, down_bias: Any,
    *, eps: Any, norm: str, proj: str, act: str,
) -> Any:  # fmt: skip
    """In fp32, from the weights as they are, panel by panel; nothing is rounded in between."""
    h = normed(x, weight, eps, norm)
    y = _by(low_linear, h, gate, up, gate_up, down, gate_bias, up_bias, gate_up_bias, down_bias, proj, act)
    return y.to(h.dtype)


def cpu_panels_bare(
    x: Any, gate: Any, up: Any, gate_up: Any, down: Any,
    gate_bias: Any, up_bias: Any, gate_up_bias: Any, down_bias: Any, *, proj: str, act: str,
) -> Any:  # fmt: skip
    """In fp32, from the weights as they are, panel by panel; nothing is rounded in between."""
    y = _by(low_linear, x, gate, up, gate_up, down, gate_bias, up_bias, gate_up_bias, down_bias, proj, act)
    return y.to(x.dtype)


for _name, _requires in PANELS.items():
    kernel(PATTERN, name=_name, **_requires)(cpu_panels)
    kernel(BARE, name=_name, **_requires)(cpu_panels_bare)


def _from_kept(
    h: Any, gate: Any, up: Any, down: Any, rows: Any, last: Any, gate_bias: Any, up_bias: Any, down_bias: Any, act: str
) -> Any:
    g, u = kept_linear(h, rows, None, gate.shape[0] + up.shape[0]).chunk(2, -1)
    if gate_bias is not None:
        g, u = g + gate_bias.float(), u + up_bias.float()
    return kept_linear(ACTIVATIONS[act](g) * u, last, down_bias, down.shape[0]).to(h.dtype)


_KEPT: dict[str, Any] = {
    **KEPT_PANELS,
    "variants": {"proj": {"separate"}},
    "derive": {"rows": panels(stack("gate", "up")), "last": panels("down")},
}


@kernel(PATTERN, **_KEPT)
def cpu_kept_panels(
    x: Any, weight: Any, gate: Any, up: Any, down: Any, rows: Any, last: Any,
    gate_bias: Any, up_bias: Any, down_bias: Any, *, eps: Any, norm: str, act: str,
) -> Any:  # fmt: skip
    """Two GEMMs over kept panels; `gate`, `up` and `down` are asked for their sizes only."""
    h = normed(x, weight, eps, norm)
    return _from_kept(h, gate, up, down, rows, last, gate_bias, up_bias, down_bias, act)


@kernel(BARE, **_KEPT)
def cpu_kept_panels_bare(
    x: Any, gate: Any, up: Any, down: Any, rows: Any, last: Any, gate_bias: Any, up_bias: Any, down_bias: Any,
    *, act: str,
) -> Any:  # fmt: skip
    """Two GEMMs over kept panels; `gate`, `up` and `down` are asked for their sizes only."""
    return _from_kept(x, gate, up, down, rows, last, gate_bias, up_bias, down_bias, act)


# packed weights: one GEMM for gate and up, one for down, both over weights that oneDNN need not reorder


def _packed_rows(
    h: Any, gate: Any, up: Any, down: Any, rows: Any, last: Any, gate_bias: Any, up_bias: Any, down_bias: Any, act: str
) -> Any:
    g, u = linear_of_packed(h, rows, None, gate.shape[0] + up.shape[0]).chunk(2, -1)
    if gate_bias is not None:
        g, u = g + gate_bias.float(), u + up_bias.float()
    return linear_of_packed(ACTIVATIONS[act](g) * u, last, down_bias, down.shape[0]).to(h.dtype)


def cpu_packed(
    x: Any, weight: Any, gate: Any, up: Any, down: Any, rows: Any, last: Any,
    gate_bias: Any, up_bias: Any, down_bias: Any, *, eps: Any, norm: str, act: str,
) -> Any:  # fmt: skip
    """Two GEMMs over packed weights; `gate`, `up` and `down` are asked for their sizes only."""
    h = normed(x, weight, eps, norm)
    return _packed_rows(h, gate, up, down, rows, last, gate_bias, up_bias, down_bias, act)


def cpu_packed_bare(
    x: Any, gate: Any, up: Any, down: Any, rows: Any, last: Any, gate_bias: Any, up_bias: Any, down_bias: Any,
    *, act: str,
) -> Any:  # fmt: skip
    """Two GEMMs over packed weights; `gate`, `up` and `down` are asked for their sizes only."""
    return _packed_rows(x, gate, up, down, rows, last, gate_bias, up_bias, down_bias, act)


for _name, _requires in PACKED.items():
    _derive = {"rows": packed(stack("gate", "up")), "last": packed("down")}
    _one_by_one = {**_requires, "variants": {"proj": {"separate"}}, "derive": _derive}
    kernel(PATTERN, name=_name, **_one_by_one)(cpu_packed)
    kernel(BARE, name=_name, **_one_by_one)(cpu_packed_bare)


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
