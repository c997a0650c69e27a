"""fxfuse: the shipped pattern, through ``fxfuse.rewrite``, on Dynamo's graph and on Inductor's post-grad graph."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils import _pytree as pytree

import fxfuse
from bench.matchers.arms.arm import Outcome, by_block, judge
from bench.matchers.captures import dynamo_graph, post_grad_graph
from bench.matchers.perturbations import Case
from fxfuse import Dim, Input, Param, Pattern, Scalar

SHIPPED = "rms_norm_gated_mlp"


def early_only() -> Pattern:
    """The headline pattern for those who declare no other place for the cast than Llama's."""
    hidden, inner, out = Dim("hidden"), Dim("intermediate"), Dim("out")

    @fxfuse.pattern("early_norm_gated_mlp")
    def pattern(
        x: Any = Input(..., hidden),
        weight: Any = Param(hidden),
        eps: Any = Scalar(float),
        gate: Any = Param(inner, hidden),
        up: Any = Param(inner, hidden),
        down: Any = Param(out, inner),
    ) -> Any:
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
        h = weight * h.to(x.dtype)
        return F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)

    return pattern


class Ours:
    """The shipped pattern as it is, but in the row that asks for a pattern without the late cast."""

    patterns = 1

    def __init__(self, level: str) -> None:
        self.level = level
        self.name = f"fxfuse, {level}"
        graph = "Dynamo's graph" if level == "dynamo" else "the post-grad graph"
        self.given = f"{graph}; the shipped pattern, one declaration with its variants and optional biases"

    def run(self, case: Case) -> Outcome:
        capture = dynamo_graph if self.level == "dynamo" else post_grad_graph
        gm, examples = capture(case.model(), case.inputs(), dynamic=case.dynamic)
        arguments = [a.node.hint if isinstance(a, torch.SymInt) else a for a in examples]

        def run() -> list[list[Tensor]]:
            cloned = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
            return by_block(case, pytree.tree_leaves(fx.Interpreter(gm).run(*cloned)))

        before = run()
        with torch.no_grad():
            report = fxfuse.rewrite(gm, options=_options(case))
        missed = [site for site in report.sites if site.outcome != "rewritten"]
        codes = ", ".join(dict.fromkeys(site.code for site in missed))
        outcome = Outcome(len(report.sites) - len(missed), said=codes, asked=str(report) if missed else "")
        return judge(outcome, case, before, run)


def _options(case: Case) -> dict[str, Any]:
    only = case.norms == ("early",) and not any(case.rightful)
    chosen: Any = early_only() if only else SHIPPED
    kernels = {} if only else {SHIPPED: "plain"}
    return {"patterns": [chosen], "kernels": kernels, "on_miss": "silent", "on_error": "raise"}
