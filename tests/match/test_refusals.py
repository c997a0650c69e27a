"""What must not be rewritten, with its reason code, each beside a twin one edit away that must be.

Every case, refused or not, is also compiled over eager and compared with eager: whatever the outcome, never wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import HIDDEN, Net, compiled, mlp, plain, rms, rows, sole

Body = Callable[..., Any]


@dataclass
class Case:
    refused: Body
    code: str
    twin: Body = plain
    dtype: torch.dtype = torch.float32
    twin_dtype: torch.dtype | None = None
    more: dict[str, Any] = field(default_factory=dict)
    args: tuple[Any, ...] = ()


def stats(x: Any, **how: Any) -> Any:
    h = x.float()
    return h * torch.rsqrt(h.pow(2).mean(**{"dim": -1, "keepdim": True, **how}) + 1e-6)


def norm_by(change: Callable[[Any, Any], Any]) -> Body:
    """The site with another norm: ``change(weight, x)``."""
    return lambda m, x: mlp(m, change(m.weight, x))


def mlp_by(change: Callable[[Any, Any], Any]) -> Body:
    """The site with another MLP: ``change(m, h)``."""
    return lambda m, x: change(m, rms(m, x))


def gated(m: Any, h: Any, act: Any = F.silu) -> Any:
    return act(F.linear(h, m.gate)) * F.linear(h, m.up)


def router(m: Any, x: Any) -> Any:
    h = rms(m, x)
    return mlp(m, h), F.linear(h, m.router)


def router_on_input(m: Any, x: Any) -> Any:
    return plain(m, x), F.linear(x, m.router)


def norm_returned(m: Any, x: Any) -> Any:
    h = rms(m, x)
    return mlp(m, h), h


def inner_returned(m: Any, x: Any) -> Any:
    a = gated(m, rms(m, x))
    return F.linear(a, m.down), a


def parallel_attention(m: Any, x: Any) -> Any:
    h = rms(m, x)
    scores = (h @ h.transpose(1, 2)).softmax(-1)
    return x + scores @ h + mlp(m, h)


def sequential_attention(m: Any, x: Any) -> Any:
    x = x + (x @ x.transpose(1, 2)).softmax(-1) @ x
    return x + plain(m, x)


def statistics_read(m: Any, x: Any) -> Any:
    factor = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    return mlp(m, m.weight * (x * factor)), factor


READERS = {
    "router reads the norm": Case(router, "EXTERNAL_USE", router_on_input),
    "parallel attention": Case(parallel_attention, "EXTERNAL_USE", sequential_attention),
    "norm returned": Case(norm_returned, "GRAPH_OUTPUT", lambda m, x: (plain(m, x), x)),
    "product returned": Case(inner_returned, "GRAPH_OUTPUT", lambda m, x: (plain(m, x), x * 2)),
    "statistics returned": Case(statistics_read, "GRAPH_OUTPUT"),
    "norm's alias returned": Case(
        lambda m, x: (lambda h: (mlp(m, h), h.view(2, 3, HIDDEN)))(rms(m, x)), "GRAPH_OUTPUT", plain
    ),
}

NORMS = {
    "mean over another dimension": Case(norm_by(lambda w, x: w * stats(x, dim=-2)), "LITERAL"),
    "mean over two dimensions": Case(norm_by(lambda w, x: w * stats(x, dim=(-1, -2))), "LITERAL"),
    "mean over everything": Case(
        norm_by(lambda w, x: w * (x * torch.rsqrt(x.pow(2).mean() + 1e-6))),
        "LITERAL",
        norm_by(lambda w, x: w * stats(x)),
    ),
    "keepdim dropped, last size 1 restored by index": Case(
        norm_by(lambda w, x: w * (x * torch.rsqrt(x.pow(2).mean(-1) + 1e-6)[..., None])), "OP"
    ),
    "keepdim dropped, square shapes broadcast": Case(
        norm_by(lambda w, x: w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=False) + 1e-6))), "LITERAL", args=(8, 8)
    ),
    "pow 3": Case(norm_by(lambda w, x: w * (x * torch.rsqrt(x.pow(3).abs().mean(-1, keepdim=True) + 1e-6))), "OP"),
    "sum for mean": Case(norm_by(lambda w, x: w * (x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6))), "OP"),
    "sum over a wrong count": Case(
        norm_by(lambda w, x: w * (x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / 7 + 1e-6))),
        "OP",
        norm_by(lambda w, x: w * (x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / 8 + 1e-6))),
    ),
    "mean subtracted from the scaled value only": Case(
        norm_by(
            lambda w, x: w * ((x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        ),
        "BINDING",
    ),
    "LayerNorm": Case(norm_by(lambda w, x: F.layer_norm(x, (HIDDEN,), w)), "OP"),
    "eps outside the root": Case(
        norm_by(lambda w, x: w * (x * (1 / (torch.sqrt(x.pow(2).mean(-1, keepdim=True)) + 1e-6)))),
        "OP",
        norm_by(lambda w, x: w * (x * (1 / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)))),
    ),
    "no eps": Case(norm_by(lambda w, x: w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)))), "OP"),
    "eps is a tensor": Case(
        norm_by(lambda w, x: w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + x.new_full((), 1e-6)))), "LITERAL"
    ),
    "statistics of another tensor": Case(
        norm_by(lambda w, x: w * (x * torch.rsqrt((x + 1).pow(2).mean(-1, keepdim=True) + 1e-6))), "BINDING"
    ),
    "two different factors": Case(
        norm_by(lambda w, x: w * (x * torch.rsqrt((x * (x + 1)).abs().mean(-1, keepdim=True) + 1e-6))), "OP"
    ),
    "sqrt for rsqrt": Case(norm_by(lambda w, x: w * (x * torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))), "OP"),
    "offset 2": Case(norm_by(lambda w, x: stats(x) * (2.0 + w)), "LITERAL", norm_by(lambda w, x: stats(x) * (1.0 + w))),
    "alpha in the offset": Case(
        norm_by(lambda w, x: stats(x) * torch.add(torch.ones(1), w, alpha=2)),
        "LITERAL",
        norm_by(lambda w, x: stats(x) * torch.add(w, 1, alpha=1)),
    ),
    "added weight": Case(norm_by(lambda w, x: w + stats(x)), "ALTERNATIVES"),
    "weight absent": Case(norm_by(lambda w, x: stats(x)), "ALTERNATIVES"),
    "clamped": Case(norm_by(lambda w, x: (w * stats(x)).clamp(-1, 1)), "OP"),
    "multiplier after the norm": Case(norm_by(lambda w, x: (w * stats(x)) * 0.5), "OP"),
}

MLPS = {
    "sub-norm before down": Case(
        mlp_by(
            lambda m, h: F.linear(
                (lambda a: m.sub * (a * torch.rsqrt(a.pow(2).mean(-1, keepdim=True) + 1e-6)))(gated(m, h)), m.down
            )
        ),
        "OP",
        mlp_by(lambda m, h: F.linear(gated(m, h), m.down)),
    ),
    "multiplier before down": Case(
        mlp_by(lambda m, h: F.linear(gated(m, h) * 0.5, m.down)), "OP", lambda m, x: plain(m, x) * 0.5
    ),
    "multiplier on the gate": Case(
        mlp_by(lambda m, h: F.linear(F.silu(F.linear(h, m.gate) * 0.5) * F.linear(h, m.up), m.down)), "OP"
    ),
    "clamped product": Case(mlp_by(lambda m, h: F.linear(gated(m, h).clamp(max=1.0), m.down)), "OP"),
    "clamped gate": Case(
        mlp_by(lambda m, h: F.linear(F.silu(F.linear(h, m.gate).clamp(max=1.0)) * F.linear(h, m.up), m.down)), "OP"
    ),
    "activation on both": Case(
        mlp_by(lambda m, h: F.linear(F.silu(F.linear(h, m.gate)) * F.silu(F.linear(h, m.up)), m.down)), "OP"
    ),
    "activation on neither": Case(mlp_by(lambda m, h: F.linear(F.linear(h, m.gate) * F.linear(h, m.up), m.down)), ""),
    "activation after the product": Case(
        mlp_by(lambda m, h: F.linear(F.silu(F.linear(h, m.gate) * F.linear(h, m.up)), m.down)), "OP"
    ),
    "sum for product": Case(
        mlp_by(lambda m, h: F.linear(F.silu(F.linear(h, m.gate)) + F.linear(h, m.up), m.down)), "OP"
    ),
    "another activation": Case(
        mlp_by(lambda m, h: F.linear(gated(m, h, torch.tanh), m.down)),
        "",
        mlp_by(lambda m, h: F.linear(gated(m, h, F.gelu), m.down)),
    ),
    "gate of the input, up of the norm": Case(
        lambda m, x: F.linear(F.silu(F.linear(x, m.gate)) * F.linear(rms(m, x), m.up), m.down), "ALTERNATIVES"
    ),
    "gate and up of two norms": Case(
        lambda m, x: F.linear(F.silu(F.linear(rms(m, x), m.gate)) * F.linear(rms(m, x + 1), m.up), m.down), "BINDING"
    ),
    "gate with bias, up without": Case(
        mlp_by(lambda m, h: F.linear(F.silu(F.linear(h, m.gate, m.gate_bias)) * F.linear(h, m.up), m.down)),
        "CONSTRAINT",
        mlp_by(lambda m, h: F.linear(F.silu(F.linear(h, m.gate, m.gate_bias)) * F.linear(h, m.up, m.up_bias), m.down)),
    ),
    "up with bias, gate without": Case(
        mlp_by(lambda m, h: F.linear(F.silu(F.linear(h, m.gate)) * F.linear(h, m.up, m.up_bias), m.down)),
        "CONSTRAINT",
        mlp_by(lambda m, h: F.linear(gated(m, h), m.down, m.down_bias)),
    ),
    "weight computed": Case(
        mlp_by(lambda m, h: F.linear(F.silu(F.linear(h, m.gate * 2)) * F.linear(h, m.up), m.down)), "NOT_A_PARAM"
    ),
    "weight made at run time": Case(
        mlp_by(lambda m, h: F.linear(F.silu(F.linear(h, m.gate)) * F.linear(h, m.up), h.new_ones(8, 12))), "NOT_A_PARAM"
    ),
    "post-norm": Case(lambda m, x: x + rms(m, mlp(m, x)), "ALTERNATIVES", lambda m, x: x + plain(m, x)),
    "packed, unequal parts": Case(
        mlp_by(lambda m, h: (lambda t: F.linear(F.silu(t[..., :12]) * t[..., 6:18], m.down))(F.linear(h, m.gate_up))),
        "OP",
        mlp_by(lambda m, h: (lambda t: F.linear(F.silu(t[..., :12]) * t[..., 12:], m.down))(F.linear(h, m.gate_up))),
    ),
    "packed, one half twice": Case(
        mlp_by(lambda m, h: (lambda t: F.linear(F.silu(t[0]) * t[0], m.down))(F.linear(h, m.gate_up).chunk(2, -1))),
        "LITERAL",
        mlp_by(lambda m, h: (lambda t: F.linear(F.silu(t[0]) * t[1], m.down))(F.linear(h, m.gate_up).chunk(2, -1))),
    ),
    "interleaved gate and up": Case(
        mlp_by(lambda m, h: (lambda t: F.linear(F.silu(t[..., ::2]) * t[..., 1::2], m.down))(F.linear(h, m.gate_up))),
        "OP",
        mlp_by(lambda m, h: (lambda t: F.linear(F.silu(t[..., 12:]) * t[..., :12], m.down))(F.linear(h, m.gate_up))),
    ),
}


def all_bf16(m: Any, x: Any) -> Any:
    """Statistics in bf16: another function than the pattern's."""
    return mlp(m, m.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)))


DTYPES = {
    "norm computed in bf16": Case(all_bf16, "DTYPE", plain, torch.bfloat16),
    "norm computed in bf16 is one function in fp32": Case(all_bf16, "DTYPE", all_bf16, torch.bfloat16, torch.float32),
    "activation not rounded before the product": Case(
        mlp_by(lambda m, h: F.linear((F.silu(F.linear(h, m.gate).float()) * F.linear(h, m.up)).to(h.dtype), m.down)),
        "OP",
        mlp_by(lambda m, h: F.linear(F.silu(F.linear(h, m.gate).float()).to(h.dtype) * F.linear(h, m.up), m.down)),
        torch.bfloat16,
    ),
    "offset added in bf16": Case(
        norm_by(lambda w, x: (stats(x) * (1.0 + w)).to(x.dtype)),
        "DTYPE",
        norm_by(lambda w, x: (stats(x) * (1.0 + w.float())).to(x.dtype)),
        torch.bfloat16,
    ),
    "rounded twice": Case(
        norm_by(lambda w, x: w * stats(x).to(torch.float16).to(x.dtype)),
        "OP",
        norm_by(lambda w, x: w * stats(x).to(x.dtype)),
        torch.bfloat16,
    ),
    "sigmoid rounded before the product": Case(
        mlp_by(
            lambda m, h: (lambda g: F.linear(g * torch.sigmoid(g) * F.linear(h, m.up), m.down))(F.linear(h, m.gate))
        ),
        "",
        plain,
        torch.bfloat16,
    ),
}

TABLES = {"readers": READERS, "norms": NORMS, "mlps": MLPS, "dtypes": DTYPES}
ROWS = [pytest.param(case, id=f"{name}") for table in TABLES.values() for name, case in table.items()]


@pytest.mark.parametrize("case", ROWS)
def test_refused_with_its_reason(case: Case) -> None:
    x = rows(*case.args, dtype=case.dtype)
    report = compiled(Net(case.refused, case.dtype, **case.more), x, **tolerance(case.dtype))
    if case.code:
        site = sole(report.sites)
        assert (site.outcome, site.code) == ("missed", case.code), str(report)
        assert site.detail is not None
        assert site.reason
        assert 0 < site.matched_nodes <= site.pattern_nodes
    assert not report.matched


@pytest.mark.parametrize("case", ROWS)
def test_its_twin_is_rewritten(case: Case) -> None:
    dtype = case.twin_dtype or case.dtype
    report = compiled(Net(case.twin, dtype, **case.more), rows(*case.args, dtype=dtype), **tolerance(dtype))
    assert [s.outcome for s in report.sites if s.outcome == "rewritten"] == ["rewritten"], str(report)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """fp32 to a few last places; in bf16 the plain kernel repeats eager's operations, so bit for bit."""
    return {} if dtype is torch.float32 else {"rtol": 0.0, "atol": 0.0}
