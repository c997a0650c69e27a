"""What the fuzz searches for: the patterns of the installed packs, and some of every authoring feature."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F

from fxfuse import Dim, Input, Param, Scalar, keep, kernel, library, many, one_of, ordered, pattern
from fxfuse.authoring import Pattern

B, D, N, OUT, T = Dim("batch"), Dim("hidden"), Dim("inner"), Dim("out"), Dim("rows")
LOW = (torch.bfloat16, torch.float16)


@functools.cache
def everything() -> tuple[Pattern, ...]:
    """The installed packs' patterns, then this page's."""
    return (*library.all_patterns().values(), *(v for v in globals().values() if isinstance(v, Pattern)))


def norm_of(x: Any, weight: Any, eps: Any) -> Any:
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return one_of("norm", early=lambda: weight * h.to(x.dtype), late=lambda: (weight * h).to(x.dtype))


@pattern("fuzz_add_norm")
def add_norm(x: Any = Input(..., D), y: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float)) -> Any:
    """Two results, of which one is an operand of the other."""
    s = x + y
    return s, norm_of(s, weight, eps)


@pattern("fuzz_norm_linear")
def norm_linear(
    x: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float), w: Any = Param(OUT, D),
    b: Any = Param(OUT, optional=True),
) -> Any:  # fmt: skip
    return F.linear(norm_of(x, weight, eps), w, b)


@pattern("fuzz_siblings")
def siblings(x: Any = Input(..., D), w: Any = Param(OUT, D, many=True)) -> Any:
    """Any number of roots."""
    return many(lambda one: F.linear(x, one), w)


@pattern("fuzz_biased_siblings")
def biased_siblings(
    x: Any = Input(..., D), w: Any = Param(OUT, D, many=True), b: Any = Param(OUT, many=True)
) -> Any:  # fmt: skip
    return many(lambda one, bias: F.linear(x, one, bias), w, b)


@pattern("fuzz_two_activations")
def two_activations(x: Any = Input(..., D), p: Any = Param(N, D), q: Any = Param(N, D)) -> Any:
    """Two roots with an operand in common."""
    return torch.sigmoid(F.linear(x, p)), torch.tanh(F.linear(x, q))


@pattern("fuzz_kept_gate")
def kept_gate(x: Any = Input(..., D), gate: Any = Param(N, D), up: Any = Param(N, D)) -> Any:
    """A value inside that others may read."""
    g = keep(F.linear(x, gate))
    return torch.sigmoid(g) * F.linear(x, up)


@pattern("fuzz_packed_glu")
def packed_glu(x: Any = Input(..., D), w: Any = Param(2 * N, D), b: Any = Param(2 * N, optional=True)) -> Any:
    """A relation of sizes."""
    first, second = F.linear(x, w, b).chunk(2, -1)
    return one_of("order", a=lambda: F.relu(first) * second, b=lambda: first * F.relu(second))


@pattern("fuzz_nested_choice")
def nested_choice(x: Any = Input(..., D), w: Any = Param(OUT, D)) -> Any:
    y = F.linear(x, w)

    def smooth() -> Any:
        return one_of("kind", exact=lambda: F.gelu(y), tanh=lambda: F.gelu(y, approximate="tanh"))

    return one_of("act", smooth=smooth, silu=lambda: F.silu(y), square=lambda: F.relu(y).pow(2)) * 2.0


@pattern("fuzz_masked_softmax")
def masked_softmax(
    x: Any = Input(..., T, N), scale: Any = Scalar(float), mask: Any = Input(..., T, N, optional=True)
) -> Any:
    """An optional operand on which the reference branches."""
    s = x * scale
    if mask is not None:
        s = s + mask
    return F.softmax(s, dim=-1)


@pattern("fuzz_attention")
def attention(
    q: Any = Input(..., T, D), k: Any = Input(..., N, D), v: Any = Input(..., N, OUT), scale: Any = Scalar(float)
) -> Any:
    return F.softmax((q @ k.transpose(-1, -2)) * scale, dim=-1) @ v


@pattern("fuzz_ordered_residual")
def ordered_residual(x: Any = Input(..., OUT), y: Any = Input(..., D), w: Any = Param(OUT, D)) -> Any:
    return ordered(x + F.linear(y, w)) * torch.tanh(x)


@pattern("fuzz_plain_product")
def plain_product(x: Any = Input(..., D), w: Any = Param(D, N)) -> Any:
    """The weight as it is: no transpose."""
    return torch.exp(torch.matmul(x, w))


@pattern("fuzz_rotary")
def rotary(x: Any = Input(..., T, 2 * D), cos: Any = Input(T, 2 * D), sin: Any = Input(T, 2 * D)) -> Any:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


@pattern("fuzz_low_only")
def low_only(x: Any = Input(..., D, dtype=LOW), y: Any = Input(..., D, dtype=LOW)) -> Any:
    """A set of dtypes, and a rounding between two ops."""
    return torch.sigmoid((x.float() * y.float()).to(x.dtype)) * x


@pattern("fuzz_layer_norm_linear")
def layer_norm_linear(
    x: Any = Input(..., D), g: Any = Param(D), h: Any = Param(D), eps: Any = Scalar(float), w: Any = Param(OUT, D)
) -> Any:
    m = x.mean(-1, keepdim=True)
    c = x - m
    return F.linear(c * torch.rsqrt(c.pow(2).mean(-1, keepdim=True) + eps) * g + h, w)


@pattern("fuzz_each")
def each(x: Any = Input(..., D), y: Any = Input(..., D)) -> Any:
    """One choice, made anew at each place."""

    def act(t: Any) -> Any:
        return one_of.each("act", relu=lambda: F.relu(t), silu=lambda: F.silu(t))

    return act(x) * act(y) + 1.0


@pattern("fuzz_biases_in_pairs")
def biases_in_pairs(
    x: Any = Input(..., D), p: Any = Param(OUT, D), q: Any = Param(OUT, D), a: Any = Param(OUT, optional=True),
    b: Any = Param(OUT, optional=True),
) -> Any:  # fmt: skip
    return torch.sigmoid(F.linear(x, p, a)) + F.linear(x, q, b)


@biases_in_pairs.constraint
def both_or_none(m: Any) -> None:
    m.require((m.a is None) == (m.b is None), "p and q need a bias both, or neither")


@pattern("fuzz_both_absent")
def both_absent(
    x: Any = Input(..., D), p: Any = Param(OUT, D), q: Any = Param(OUT, D), a: Any = Param(OUT, optional=True),
    b: Any = Param(OUT, optional=True),
) -> Any:  # fmt: skip
    """Where both operands are absent, something else is computed than what lacks them."""
    y = torch.sigmoid(F.linear(x, p, a)) * F.linear(x, q, b)
    return torch.tanh(y) if a is None and b is None else y


@pattern("fuzz_two_inputs")
def two_inputs(x: Any = Input(..., D), y: Any = Input(..., D), p: Any = Param(D)) -> Any:
    """Two roots, each with an input of its own: one may come to depend on the other."""
    s = torch.sigmoid(x)
    return s * p, torch.tanh(y) + s


@pattern("fuzz_slice")
def sliced(x: Any = Input(..., N + 2), y: Any = Input(..., N)) -> Any:
    return torch.sigmoid(x[..., 2:]).mean(-1, keepdim=True) * y


@pattern("fuzz_functional_norm")
def functional_norm(x: Any = Input(..., D), w: Any = Param(D), eps: Any = Scalar(float)) -> Any:
    return torch.tanh(F.rms_norm(x, w.shape, w, eps))


@pattern("fuzz_heads")
def heads(x: Any = Input(..., 2 * D), w: Any = Param(2)) -> Any:
    """The last dimension in heads and back."""
    return (torch.tanh(x.unflatten(-1, (-1, 2))) * w).flatten(-2)


@pattern("fuzz_grouped")
def grouped(q: Any = Input(B, T, D), k: Any = Input(B, N, D)) -> Any:
    """Each row of k serves two."""
    return torch.sigmoid(q @ k.repeat_interleave(2, dim=-2).transpose(-1, -2))


@pattern("fuzz_scale")
def scale(x: Any = Input(..., D), w: Any = Param(D)) -> Any:
    return x * torch.sigmoid(w)


@pattern("fuzz_offset_scale")
def offset_scale(x: Any = Input(..., D), w: Any = Param(D), s: Any = Input()) -> Any:
    return x.float() * (w.float() + s.float())


@pattern("fuzz_shifted_weight")
def shifted_weight(x: Any = Input(..., D), w: Any = Param(D), s: Any = Input()) -> Any:
    return x.float() * (w + s)


@pattern("fuzz_any_weight")
def any_weight(x: Any = Input(..., D), w: Any = Input(..., N, D)) -> Any:
    """A weight that may be computed."""
    return torch.exp(F.linear(x, w))


@pattern("fuzz_where")
def where(x: Any = Input(..., D), mask: Any = Input(..., D, dtype=torch.bool), c: Any = Scalar(float)) -> Any:
    return torch.tanh(torch.where(mask, c, x))


@pattern("fuzz_weighted")
def weighted(x: Any = Input(..., D), w: Any = Param(D)) -> Any:
    return torch.sigmoid((w * x).float())


@pattern("fuzz_formula")
def formula(x: Any = Input(..., D)) -> Any:
    """An activation written step by step: in a low precision another function than the op."""
    return torch.tanh(x * torch.sigmoid(x))


@pattern("fuzz_functional_layer_norm")
def functional_layer_norm(
    x: Any = Input(..., D), w: Any = Param(D), h: Any = Param(D), eps: Any = Scalar(float)
) -> Any:
    return torch.tanh(F.layer_norm(x, w.shape, w, h, eps))


@pattern("fuzz_same_twice")
def same_twice(x: Any = Input(..., D), y: Any = Input(..., D)) -> Any:
    """Two results of one value, in memory of their own."""
    s = torch.exp(x)
    return s * y, y * s


# --- kernels that rest on a safeguard, and kernels that break their contract ----------------------------------------


@kernel(biases_in_pairs, name="paired", backward="autograd")
def paired(x: Any, p: Any, q: Any, a: Any, b: Any) -> Any:
    """Right where the constraint holds and ``a`` has the size that the pattern declares, and only there."""
    if a is None:
        return torch.sigmoid(F.linear(x, p)) + F.linear(x, q)
    row = F.pad(a, (0, p.shape[0] - a.shape[0]))
    return torch.sigmoid(F.linear(x, p, row)) + F.linear(x, q, row if b is None else b)


@kernel(scale, name="padded", backward="autograd")
def padded(x: Any, w: Any) -> Any:
    """Right where ``w`` has the sizes that the pattern declares."""
    return x * torch.sigmoid(F.pad(w, (0, x.shape[-1] - w.shape[0])))


@kernel(each, name="careless", backward="autograd")
def in_place(x: Any, y: Any, *, act_1: str, act_2: str) -> Any:
    """Writes to an operand."""
    made = {"relu": F.relu, "silu": F.silu}
    return (made[act_1](x) * made[act_2](y)).add(1.0) + x.mul_(0.0).nan_to_num(0.0)


@kernel(same_twice, name="careless", backward="autograd")
def one_tensor(x: Any, y: Any) -> Any:
    """Gives one tensor for two results."""
    made = torch.exp(x) * y
    return made, made


@kernel(scale, name="careless", backward="autograd")
def turned(x: Any, w: Any) -> Any:
    """Gives another layout."""
    return (x * torch.sigmoid(w)).transpose(-1, 0).contiguous().transpose(-1, 0)


@kernel(low_only, name="careless", backward="autograd")
def wide(x: Any, y: Any) -> Any:
    """Gives another dtype."""
    return torch.sigmoid((x.float() * y.float()).to(x.dtype)).float() * x
