"""Patterns and kernels that are wrong, each in one way, and one that is right: what `fxfuse check` must tell apart.

Each is the text of a file; ``HEAD`` goes before it.
"""

from __future__ import annotations

HEAD = """
import torch
import torch.nn.functional as F
from fxfuse import Dim, Input, Param, Scalar, keep, kernel, many, one_of, ordered, pattern

D, N = Dim("hidden"), Dim("intermediate")

def normed(x, eps):
    h = x.float()
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
"""

RIGHT = """
@pattern("scaled_norm")
def scaled_norm(x=Input(..., D), w=Param(D), eps=Scalar(float)):
    h = normed(x, eps)
    return one_of("norm", early=lambda: w * h.to(x.dtype), late=lambda: (w * h).to(x.dtype))

@kernel(scaled_norm, name="same", backward="autograd")
def same(x, w, *, eps, norm):
    h = normed(x, eps)
    return w * h.to(x.dtype) if norm == "early" else (w * h).to(x.dtype)
"""

NORM = """
@pattern("scaled_norm")
def scaled_norm(x=Input(..., D), w=Param(D), eps=Scalar(float)):
    h = normed(x, eps)
    return one_of("norm", early=lambda: w * h.to(x.dtype), late=lambda: (w * h).to(x.dtype))
"""

BIASED = """
@pattern("biased")
def biased(x=Input(..., D), w=Param(N, D), b=Param(N, optional=True)):
    return F.silu(F.linear(x, w, b))
"""

FAULTS = {
    "a kernel that ignores an operand": (
        BIASED + """
@kernel(biased, name="k")
def k(x, w, b):
    return F.silu(F.linear(x, w))
""", "numerics", r"kernel 'k' is out of bounds"),
    "a kernel that ignores a scalar": (
        NORM + """
@kernel(scaled_norm, name="k")
def k(x, w, *, eps, norm):
    h = normed(x, 1e-6)
    return w * h.to(x.dtype) if norm == "early" else (w * h).to(x.dtype)
""", "numerics", r"kernel 'k' is out of bounds"),
    "a kernel that rounds early for late": (
        NORM + """
@kernel(scaled_norm, name="k")
def k(x, w, *, eps, norm):
    return w * normed(x, eps).to(x.dtype)
""", "kernel", r"kernel 'k' computes norm=early where norm=late is asked"),
    "a kernel that rounds late for early": (
        NORM + """
@kernel(scaled_norm, name="k")
def k(x, w, *, eps, norm):
    return (w * normed(x, eps)).to(x.dtype)
""", "kernel", r"kernel 'k' computes norm=late where norm=early is asked"),
    "a kernel with other strides": (
        BIASED + """
@kernel(biased, name="k")
def k(x, w, b):
    return F.silu(F.linear(x, w, b)).transpose(0, -1).contiguous().transpose(0, -1)
""", "kernel", r"kernel 'k' .*strides"),
    "a kernel with another dtype": (
        BIASED + """
@kernel(biased, name="k")
def k(x, w, b):
    return F.silu(F.linear(x, w, b)).float()
""", "kernel", r"kernel 'k' .*float32"),
    "a kernel with a wrong gradient": (
        BIASED + """
@kernel(biased, name="k", backward="autograd")
def k(x, w, b):
    return F.silu(F.linear(x.detach(), w, b))
""", "gradient", r"kernel 'k' gives another gradient of x: no gradient, and the reference has one"),
    "a kernel whose gradient is half of it": (
        BIASED + """
@kernel(biased, name="k", backward="autograd")
def k(x, w, b):
    half = 0.5 * w
    return F.silu(F.linear(x, half + half.detach(), b))
""", "gradient", r"kernel 'k' gives a gradient of w that is out of bounds"),
    "a kernel that takes one size for all": (
        BIASED + """
@kernel(biased, name="k")
def k(x, w, b):
    return F.silu(F.linear(x.reshape(6, -1), w, b)).reshape(2, 3, -1)
""", "kernel", r"kernel 'k' "),
    "a kernel for fewer dimensions than the pattern allows": (
        BIASED + """
@kernel(biased, name="k")
def k(x, w, b):
    y = torch.einsum("abd,nd->abn", x, w)
    return F.silu(y if b is None else y + b)
""", "kernel", r"kernel 'k' cannot be put in place"),
    "a missing constraint": (
        """
@pattern("gated")
def gated(x=Input(..., D), gate=Param(N, D), up=Param(N, D),
          gate_bias=Param(N, optional=True), up_bias=Param(N, optional=True)):
    return F.silu(F.linear(x, gate, gate_bias)) * F.linear(x, up, up_bias)

@kernel(gated, name="k")
def k(x, gate, up, gate_bias, up_bias):
    bias = None if gate_bias is None else torch.cat([gate_bias, up_bias])
    g, u = F.linear(x, torch.cat([gate, up]), bias).chunk(2, -1)
    return F.silu(g) * u
""", "kernel", r"kernel 'k' cannot be put in place|numerics"),
    "an alternative behind a wildcard": (
        """
@pattern("scaled")
def scaled(x=Input(..., D), w=Param(N, D), s=Scalar(float)):
    h = F.silu(F.linear(x, w))
    return one_of("by", any=lambda: h * s, two=lambda: h * 2.0)
""", "variant", r"by=two is never found: by=any is reported in its place, which computes the same"),
    "an alternative that a constraint always refuses": (
        """
@pattern("activated")
def activated(x=Input(..., D), w=Param(N, D)):
    h = F.linear(x, w)
    return one_of("act", silu=lambda: F.silu(h), relu=lambda: F.relu(h))

@activated.constraint
def only_silu(m):
    m.require(m.variant["act"] == "silu", "only SiLU is served")
""", "variant", r"act=relu is never found: a constraint refuses it \(only SiLU is served"),
    "a constraint that fails": (
        BIASED + """
@biased.constraint
def broken(m):
    m.require(m.bias is None, "no bias")
""", "positive", r"nothing is found. CONSTRAINT: .*broken failed: AttributeError"),
    "sizes that do not go together": (
        """
@pattern("summed")
def summed(x=Input(..., D), w=Param(D), v=Param(3, N)):
    return F.silu(x * w) @ v
""", "example", r"no sizes were found with which the reference runs"),
    "a kernel that writes to its input": (
        """
@pattern("shifted")
def shifted(x=Input(..., D), w=Param(D)):
    return F.silu(x + w)

@kernel(shifted, name="k")
def k(x, w):
    return F.silu(torch.Tensor.add_(x, w))
""", "kernel", r"kernel 'k' "),
    "a kernel that is out of bounds in one dtype only": (
        BIASED + """
@kernel(biased, name="k")
def k(x, w, b):
    y = F.linear(x, w, b)
    return F.silu(y.bfloat16().to(x.dtype)) if x.dtype is torch.float32 else F.silu(y)
""", "numerics", r"kernel 'k' is out of bounds"),
}  # fmt: skip
"""Name -> (the file, which check finds it, what it says)."""

EVERYTHING = """
@pattern("siblings")
def siblings(x=Input(..., D), weights=Param(N, D, many=True), biases=Param(N, many=True, optional=True)):
    return many(lambda w, b: F.linear(x, w, b), weights, biases)

@pattern("add_norm")
def add_norm(x=Input(..., D), y=Input(..., D), w=Param(D), eps=Scalar(float)):
    s = x + y
    return s, w * normed(s, eps).to(s.dtype)

@kernel(add_norm, name="same")
def same(x, y, w, *, eps):
    s = x + y
    return s, w * normed(s, eps).to(s.dtype)

@pattern("halves")
def halves(x=Input(..., D), w=Param(2 * N, D), approximate=Scalar(str)):
    a, b = F.linear(x, w).chunk(2, -1)
    return F.gelu(a, approximate=approximate) * b

@pattern("kept_norm")
def kept_norm(x=Input(..., D), w=Param(N, D), eps=Scalar(float)):
    return F.linear(keep(normed(x, eps).to(x.dtype)), w)

LOW = (torch.bfloat16, torch.float16)

@pattern("low_only")
def low_only(x=Input(..., D, dtype=LOW), w=Param(N, D, dtype=LOW)):
    return torch.tanh(F.linear(x, w))

@pattern("in_order")
def in_order(x=Input(..., D), y=Input(..., D)):
    return ordered(torch.sigmoid(x) * torch.tanh(y))

@pattern("each_act")
def each_act(x=Input(..., D), v=Param(D), w=Param(D)):
    def act(t):
        return one_of.each("act", silu=lambda: F.silu(t), relu=lambda: F.relu(t))
    return act(act(x * v) + w)
"""
