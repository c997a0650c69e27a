"""Every reason code as a user reads it, exact, and as data; beside each stands a twin one edit away that matches.

Only line numbers are masked: they belong to the files that the lines are in.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from match.test_refusals import gated, mlp_by, norm_by, router, stats
from support import HIDDEN, INTER, PATTERN, Net, capture, mlp, options, plain, rms, rows

import fxfuse
from fxfuse import Dim, Input, Param, Pattern, Report, many, pattern
from fxfuse.describe import site_record
from fxfuse.engine import fuse
from fxfuse.match import find_sites
from fxfuse.options import Options, parse
from fxfuse.view import View

D, N, K = Dim("hidden"), Dim("intermediate"), Dim("out")


@dataclass
class Case:
    """What is captured of ``body``, refused, and of ``twin``, which differs in one thing and is not."""

    body: Callable[..., Any]
    text: str
    twin: Callable[..., Any] = plain
    patterns: tuple[Pattern, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    twin_options: dict[str, Any] | None = None
    dtype: torch.dtype = torch.float32
    more: dict[str, Any] = field(default_factory=dict)
    look: Callable[..., Report] | None = None


def explained(case: Case, body: Callable[..., Any], given: dict[str, Any]) -> Report:
    """The report on one side of a case."""
    torch._dynamo.reset()
    model, x = Net(body, case.dtype, **case.more), rows(dtype=case.dtype)
    if case.look is not None:
        return case.look(model, x, **given)
    if not case.patterns:
        return fxfuse.explain(model, (x,), options={**options(), **given})
    gm, examples = capture(model, x)
    return fuse(gm, examples, active(case.patterns, **given)).report


def active(patterns: tuple[Pattern, ...], **kernels: str) -> Options:
    """Options under which these patterns are the library: all of them are active, none is named."""
    named = tuple((name, (kernel,)) for name, kernel in kernels.items())
    return dataclasses.replace(parse(None), patterns=patterns, kernels=named)


def shown(report: Report) -> str:
    """The rows of all sites, without line numbers."""
    lines = str(report).splitlines()[2:]
    body = [line for line in lines if not line.startswith("time: ")]
    return re.sub(r"(\.py):\d+", r"\1:#", "\n".join(body)).strip()


# --- patterns and kernels that the cases need -----------------------------------------------------------------------


@pattern("bare_gate")
def bare_gate(x: Any = Input(..., D), gate: Any = Param(N, D), up: Any = Param(N, D), down: Any = Param(K, N)) -> Any:
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


@pattern("gate_product", priority=1)
def gate_product(h: Any = Input(..., D), gate: Any = Param(N, D), up: Any = Param(N, D)) -> Any:
    return F.silu(F.linear(h, gate)) * F.linear(h, up)


@pattern("whole_gate")
def whole_gate(x: Any = Input(..., D), gate: Any = Param(N, D), up: Any = Param(N, D), down: Any = Param(K, N)) -> Any:
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


@pattern("siblings")
def siblings(x: Any = Input(..., D), weights: Any = Param(N, D, many=True)) -> Any:
    return many(lambda w: F.linear(F.silu(x).exp(), w), weights)


@pattern("shared_weight")
def shared_weight(x: Any = Input(..., D), a: Any = Param(N, D), y: Any = Input(..., D)) -> Any:
    return F.silu(F.linear(x, a)), torch.tanh(F.linear(y, a))


@pattern("nobodys")
def nobodys(x: Any = Input(..., D), w: Any = Param(N, D)) -> Any:
    return torch.tanh(F.linear(x, w)).exp()


@pattern("unmeasured")
def unmeasured(x: Any = Input(..., D), w: Any = Param(N, D)) -> Any:
    return torch.tanh(F.linear(x, w)).exp()


@pattern("forward_only")
def forward_only(x: Any = Input(..., D), w: Any = Param(N, D)) -> Any:
    return torch.tanh(F.linear(x, w)).exp()


@pattern("broken")
def broken(x: Any = Input(..., D), w: Any = Param(N, D)) -> Any:
    return torch.tanh(F.linear(x, w)).exp()


@fxfuse.kernel(unmeasured, name="fast", device="cpu")
def fast(x: Any, w: Any) -> Any:
    return torch.tanh(F.linear(x, w)).exp()


@fxfuse.kernel(forward_only, name="inference", default=True)
def inference(x: Any, w: Any) -> Any:
    return torch.tanh(F.linear(x, w)).exp()


@fxfuse.kernel(broken, name="transposed", device="cpu", default=True)
def transposed(x: Any, w: Any) -> Any:
    return torch.tanh(F.linear(x, w)).exp().mT


@fxfuse.kernel(broken, name="wrong", device="cpu")
def wrong(x: Any, w: Any) -> Any:
    return torch.tanh(F.linear(x, w)).exp() * 1.01


@fxfuse.kernel(broken, name="right", device="cpu")
def right(x: Any, w: Any) -> Any:
    return torch.tanh(F.linear(x, w)).exp()


def bounded(m: Any, x: Any) -> Any:
    return torch.tanh(F.linear(x, m.gate)).exp()


def differentiable(m: Any, x: Any) -> Any:
    return torch.tanh(F.linear(x, m.trained)).exp()


def written_between(m: Any, x: Any) -> Any:
    h = rms(m, x)
    g = F.silu(F.linear(h, m.gate))
    h.add_(1)
    return F.linear(g * F.linear(h, m.up), m.down)


def written_after(m: Any, x: Any) -> Any:
    y = plain(m, x)
    return y.add_(1)


def switched_inside(m: Any, x: Any) -> Any:
    h = rms(m, x)
    g = F.silu(F.linear(h, m.gate))
    with torch.set_grad_enabled(False):
        u = F.linear(h, m.up)
    return F.linear(g * u, m.down)


def switched_after(m: Any, x: Any) -> Any:
    y = plain(m, x)
    with torch.set_grad_enabled(False):
        return y + x.sin()


def after_itself(m: Any, x: Any) -> Any:
    first = F.silu(F.linear(x, m.gate))
    return first, torch.tanh(F.linear(first[..., :HIDDEN] + x, m.gate))


def beside_itself(m: Any, x: Any) -> Any:
    first = F.silu(F.linear(x, m.gate))
    return first, torch.tanh(F.linear(x.exp()[..., :HIDDEN] + x, m.gate))


def stopped(model: Any, x: Any, limit: int = 5) -> Report:
    gm, examples = capture(model, x)
    (found,) = find_sites(View(gm.graph, examples), HEADLINE, limit=limit)
    return Report((site_record(found, found.reason, ("",), "missed" if found.reason else "rewritten"),))


def verified(model: Any, x: Any, **kernels: str) -> Report:
    gm, examples = capture(model, x)
    return fuse(gm, examples, dataclasses.replace(active((broken,), **kernels), verify=True)).report


(HEADLINE,) = parse({"patterns": [PATTERN]}).patterns
PART = {"part": torch.nn.Parameter(torch.randn(6, HIDDEN), requires_grad=False)}
TRAINED = {"trained": torch.nn.Parameter(torch.randn(INTER, HIDDEN))}

CASES: dict[str, Case] = {
    "OP": Case(mlp_by(lambda m, h: F.linear(gated(m, h).clamp(max=1.0), m.down)), ""),
    "ARITY": Case(
        lambda m, x: F.linear(F.silu(F.linear(x, m.gate, m.gate_bias)) * F.linear(x, m.up), m.down),
        "",
        mlp,
        (bare_gate,),
        {"bare_gate": "reference"},
    ),
    "ARITY of siblings": Case(
        lambda m, x: F.linear(F.silu(x).exp(), m.gate),
        "",
        lambda m, x: (F.linear(h := F.silu(x).exp(), m.gate), F.linear(h, m.up)),
        (siblings,),
        {"siblings": "reference"},
    ),
    "LITERAL": Case(norm_by(lambda w, x: stats(x) * (2.0 + w)), "", norm_by(lambda w, x: stats(x) * (1.0 + w))),
    "DTYPE": Case(
        lambda m, x: mlp(m, m.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))),
        "",
        dtype=torch.bfloat16,
    ),
    "SHAPE": Case(
        mlp_by(lambda m, h: F.linear(F.silu(F.linear(h, m.gate)) * F.linear(h, m.part).repeat(1, 1, 2), m.down)),
        "",
        more=PART,
    ),
    "BINDING": Case(
        norm_by(lambda w, x: w * (x * torch.rsqrt((x + 1).pow(2).mean(-1, keepdim=True) + 1e-6))),
        "",
        norm_by(lambda w, x: w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))),
    ),
    "ALTERNATIVES": Case(
        mlp_by(lambda m, h: F.linear(gated(m, h, F.mish), m.down)),
        "",
        mlp_by(lambda m, h: F.linear(gated(m, h, F.gelu), m.down)),
    ),
    "ALTERNATIVES that got equally far": Case(norm_by(lambda w, x: stats(x)), "", norm_by(lambda w, x: w * stats(x))),
    "EXTERNAL_USE": Case(router, "", lambda m, x: (plain(m, x), F.linear(x, m.router))),
    "GRAPH_OUTPUT": Case(lambda m, x: (mlp(m, h := rms(m, x)), h), "", lambda m, x: (plain(m, x), x.sin())),
    "MUTATION": Case(written_between, "", written_after),
    "CYCLE": Case(after_itself, "", beside_itself, (shared_weight,), {"shared_weight": "reference"}),
    "REGION": Case(switched_inside, "", switched_after),
    "NOT_A_PARAM": Case(mlp_by(lambda m, h: F.linear(F.silu(F.linear(h, m.gate * 2)) * F.linear(h, m.up), m.down)), ""),
    "REQUIRES_GRAD": Case(differentiable, "", bounded, (forward_only,), more=TRAINED),
    "CONSTRAINT": Case(
        mlp_by(lambda m, h: F.linear(F.silu(F.linear(h, m.gate, m.gate_bias)) * F.linear(h, m.up), m.down)),
        "",
        mlp_by(lambda m, h: F.linear(F.silu(F.linear(h, m.gate, m.gate_bias)) * F.linear(h, m.up, m.up_bias), m.down)),
    ),
    "OVERLAP": Case(
        mlp,
        "",
        lambda m, x: F.linear(F.silu(F.linear(x, m.gate)) * F.linear(x, m.up), m.down, m.down_bias).sin(),
        (whole_gate, gate_product),
        {"whole_gate": "reference", "gate_product": "reference"},
    ),
    "COST": Case(bounded, "", bounded, (unmeasured,), {}, {"unmeasured": "fast"}),
    "NO_KERNEL": Case(bounded, "", bounded, (nobodys,), {}, {"nobodys": "reference"}),
    "REWRITE_ERROR": Case(bounded, "", bounded, (broken,), {}, {"broken": "right"}),
    "VERIFY": Case(bounded, "", bounded, (), {"broken": "wrong"}, {"broken": "right"}, look=verified),
    "DISABLED": Case(plain, "", plain, (), {"kernels": {PATTERN: "off"}}, {"kernels": {PATTERN: "plain"}}),
    "DISABLED by paths": Case(plain, "", plain, (), {"paths": ["elsewhere.**", "!**"], "on_miss": "silent"}, {}),
    "STEP_LIMIT": Case(plain, "", plain, (), {"limit": 5}, {"limit": 20_000}, look=stopped),
}
