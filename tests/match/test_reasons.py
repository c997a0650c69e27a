"""Every reason code as a user reads it: exactly the example of docs/reasons.md, and the same as data.

Beside each stands a twin, one edit away, that is rewritten. Line numbers are masked, since they belong to the files
that the lines are in, and so are measured errors.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from match import example_models as models
from support import HIDDEN, INTER, PATTERN, Net, capture, mlp, rows

import fxfuse
from fxfuse import Dim, Input, Param, Pattern, Report, many, pattern
from fxfuse.describe import site_record
from fxfuse.engine import fuse
from fxfuse.match import CODES, find_sites
from fxfuse.options import Options, parse
from fxfuse.view import View

DOCS = Path(__file__).parents[2] / "docs" / "reasons.md"
D, N, K = Dim("hidden"), Dim("intermediate"), Dim("out")
(HEADLINE,) = parse({"patterns": [PATTERN]}).patterns


# --- patterns and kernels that the examples need --------------------------------------------------------------------


@pattern("gated")
def gated(x: Any = Input(..., D), gate: Any = Param(N, D), up: Any = Param(N, D)) -> Any:
    return F.silu(F.linear(x, gate)) * F.linear(x, up)


@pattern("preferred", priority=1)
def preferred(x: Any = Input(..., D), gate: Any = Param(N, D), up: Any = Param(N, D)) -> Any:
    return F.silu(F.linear(x, gate)) * F.linear(x, up)


@pattern("gated_mlp")
def gated_mlp(x: Any = Input(..., D), gate: Any = Param(N, D), up: Any = Param(N, D), down: Any = Param(K, N)) -> Any:
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


@pattern("siblings")
def siblings(x: Any = Input(..., D), weights: Any = Param(N, D, many=True)) -> Any:
    h = torch.tanh(x).exp()
    return many(lambda w: F.linear(h, w), weights)


@pattern("two_results")
def two_results(x: Any = Input(..., D), a: Any = Param(N, D), y: Any = Input(..., D)) -> Any:
    return F.silu(F.linear(x, a)), torch.tanh(F.linear(y, a))


@pattern("bounded")
def bounded(x: Any = Input(..., D), w: Any = Param(N, D)) -> Any:
    return torch.tanh(F.linear(x, w)).exp()


@pattern("unmeasured")
def unmeasured(x: Any = Input(..., D), w: Any = Param(N, D)) -> Any:
    return torch.tanh(F.linear(x, w)).exp()


@pattern("without_backward")
def without_backward(x: Any = Input(..., D), w: Any = Param(N, D)) -> Any:
    return torch.tanh(F.linear(x, w)).exp()


@pattern("faulty")
def faulty(x: Any = Input(..., D), w: Any = Param(N, D)) -> Any:
    return torch.tanh(F.linear(x, w)).exp()


@fxfuse.kernel(unmeasured, name="fast", device="cpu")
@fxfuse.kernel(faulty, name="right", device="cpu")
@fxfuse.kernel(without_backward, name="inference", default=True)
def right(x: Any, w: Any) -> Any:
    return torch.tanh(F.linear(x, w)).exp()


@fxfuse.kernel(faulty, name="transposed", default=True)
def transposed(x: Any, w: Any) -> Any:
    return torch.tanh(F.linear(x, w)).exp().mT


@fxfuse.kernel(faulty, name="one_percent_off", device="cpu")
def one_percent_off(x: Any, w: Any) -> Any:
    return torch.tanh(F.linear(x, w)).exp() * 1.01


# --- the cases ------------------------------------------------------------------------------------------------------

Body = Callable[..., Any]


@dataclass
class Case:
    """A forward that is refused, and a twin that is not. Of these ``patterns`` none is named by the user."""

    body: Body
    twin: Body = models.site
    patterns: tuple[Pattern, ...] = (HEADLINE,)
    kernels: dict[str, str] = field(default_factory=lambda: {PATTERN: "plain"})
    twin_patterns: tuple[Pattern, ...] | None = None
    twin_kernels: dict[str, str] | None = None
    dtype: torch.dtype = torch.float32
    more: dict[str, Any] = field(default_factory=dict)
    verify: bool = False
    steps: int | None = None

    def report(self) -> Report:
        return self._report(self.body, self.patterns, self.kernels)

    def twin_report(self) -> Report:
        patterns = self.patterns if self.twin_patterns is None else self.twin_patterns
        return self._report(self.twin, patterns, self.kernels if self.twin_kernels is None else self.twin_kernels)

    def _report(self, body: Body, patterns: tuple[Pattern, ...], kernels: dict[str, str]) -> Report:
        torch._dynamo.reset()
        gm, examples = capture(Net(body, self.dtype, **self.more), rows(dtype=self.dtype))
        if self.steps is not None and body is self.body and kernels is self.kernels:
            (found,) = find_sites(View(gm.graph, examples), patterns[0], limit=self.steps)
            return Report((site_record(found, found.reason, ("",), "missed"),))
        named = tuple((name, (kernel,)) for name, kernel in kernels.items())
        given: Options = parse({"verify": self.verify})
        return fuse(gm, examples, dataclasses.replace(given, patterns=patterns, kernels=named)).report


def parameter(*shape: int, grad: bool = False) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(*shape), requires_grad=grad)


ON = {PATTERN: "plain"}

CASES: dict[str, Case] = {
    "OP": Case(models.clamped_product),
    "ARITY": Case(models.gate_with_bias, models.gate_without_bias, (gated,), {"gated": "reference"}),
    "LITERAL": Case(models.scaled_by_two_plus_weight, models.scaled_by_one_plus_weight),
    "DTYPE": Case(models.statistics_in_bf16, dtype=torch.bfloat16),
    "SHAPE": Case(models.one_up_row, more={"one_row": parameter(1, HIDDEN)}),
    "BINDING": Case(models.statistics_of_another_tensor),
    "ALTERNATIVES": Case(models.norm_without_weight, models.norm_with_weight),
    "EXTERNAL_USE": Case(models.routed, models.routed_by_the_input),
    "GRAPH_OUTPUT": Case(models.norm_returned),
    "MUTATION": Case(models.written_between, models.written_after),
    "CYCLE": Case(models.two_in_a_row, models.two_side_by_side, (two_results,), {"two_results": "reference"}),
    "REGION": Case(models.switched_inside, models.switched_after),
    "NOT_A_PARAM": Case(models.doubled_gate),
    "REQUIRES_GRAD": Case(
        models.trained, models.bounded, (without_backward,), {}, more={"trained": parameter(INTER, HIDDEN, grad=True)}
    ),
    "CONSTRAINT": Case(models.bias_on_gate_alone, models.bias_on_both),
    "OVERLAP": Case(
        mlp,
        mlp,
        (gated_mlp, preferred),
        {"gated_mlp": "reference", "preferred": "reference"},
        twin_patterns=(gated_mlp,),
    ),
    "COST": Case(models.bounded, models.bounded, (unmeasured,), {}, twin_kernels={"unmeasured": "fast"}),
    "NO_KERNEL": Case(models.bounded, models.bounded, (bounded,), {}, twin_kernels={"bounded": "reference"}),
    "REWRITE_ERROR": Case(models.bounded, models.bounded, (faulty,), {}, twin_kernels={"faulty": "right"}),
    "VERIFY": Case(
        models.bounded,
        models.bounded,
        (faulty,),
        {"faulty": "one_percent_off"},
        twin_kernels={"faulty": "right"},
        verify=True,
    ),
    "DISABLED": Case(models.site, kernels={PATTERN: "off"}, twin_kernels=ON),
    "STEP_LIMIT": Case(models.site, steps=5, twin_kernels=ON),
}

FURTHER: dict[str, tuple[Case, str]] = {
    "an activation that the pattern does not know": (
        Case(models.with_mish, models.with_gelu),
        """\
rms_norm_gated_mlp: 1 missed (1 reason)
  x1 (top level)  10 of 11 nodes matched, norm=early proj=separate
     ALTERNATIVES  expected act=silu, gelu, gelu_tanh or relu, found mish (activated)
       pattern  patterns/rms_norm_gated_mlp.py:#                 a = one_of(
       graph    activated: f32[2, 3, 12]  example_models.py:#    activated = F.mish(F.linear(h, m.gate))
     also tried: act=silu, gelu, gelu_tanh or relu, stopped at silu, gelu or relu (OP mish (activated))""",
    ),
    "a group of one": (
        Case(models.one_projection, models.two_projections, (siblings,), {"siblings": "reference"}),
        """\
siblings: 1 missed (1 reason)
  x1 (top level)  3 of 3 nodes matched
     ARITY  expected at least 2 siblings, found 1
       pattern  match/test_reasons.py:#                          return many(lambda w: F.linear(h, w), weights)
       graph    linear: f32[2, 3, 12]  example_models.py:#       return F.linear(h, m.gate)""",
    ),
}


def shown(report: Report) -> str:
    """The rows of all sites, without line numbers and measured errors."""
    lines = [line for line in str(report).splitlines()[2:] if not line.startswith("time: ")]
    text = re.sub(r"(\.py):\d+", r"\1:#", "\n".join(lines)).strip()
    return re.sub(r"\d\.\de-\d\d", "#", text)


def documented(code: str) -> str:
    """The section of docs/reasons.md on a code."""
    match = re.search(rf"^## {code}\n(.*?)(?=^## |\Z)", DOCS.read_text(encoding="utf-8"), re.M | re.S)
    assert match is not None, f"docs/reasons.md has no section {code}"
    return match[1]


def test_every_code_has_an_example_and_a_section() -> None:
    assert list(CASES) == list(CODES)
    sections = re.findall(r"^## ([A-Z_]+)$", DOCS.read_text(encoding="utf-8"), re.M)
    assert sections == list(CODES)


@pytest.mark.parametrize("code", CASES)
def test_the_example_of_the_docs_is_what_a_user_reads(code: str) -> None:
    section = documented(code)
    example = re.search(r"^```text\n(.*?)\n```$", section, re.M | re.S)
    assert example is not None
    report = CASES[code].report()
    assert example[1] == shown(report)
    assert [s.code for s in report.sites if s.code] == [code]
    assert "What to do:" in section


@pytest.mark.parametrize("code", CASES)
def test_the_twin_is_rewritten(code: str) -> None:
    report = CASES[code].twin_report()
    assert [s.outcome for s in report.sites] == ["rewritten"], str(report)


@pytest.mark.parametrize("code", CASES)
def test_the_record_has_all_of_it(code: str) -> None:
    report = CASES[code].report()
    again = Report.from_json(report.to_json())
    assert again == report
    assert str(again) == str(report)
    (site,) = (s for s in again.sites if s.code == code)
    assert site.detail is not None
    assert (site.detail.code, site.detail.sentence) == (site.code, site.reason)
    assert site.detail.graph_node
    json.loads(report.to_json())


@pytest.mark.parametrize("name", FURTHER)
def test_further_texts(name: str) -> None:
    case, text = FURTHER[name]
    assert shown(case.report()) == text
    assert [s.outcome for s in case.twin_report().sites] == ["rewritten"]
