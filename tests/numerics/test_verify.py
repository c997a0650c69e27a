"""`verify`: what it catches on a call's own values, what it leaves as it was, and what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from end_to_end.tiny import PATTERN, Tiny, batch, tiny_llama
from numerics import subtle
from numerics.subtle import Mlp, Norm, options, rows
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxfuse
from fxfuse.params.share import groups_of
from fxfuse.safeguards import lifted

INPUTS = "the call's own inputs"


def outliers(*, channel: int = 3) -> Tensor:
    x = rows()
    x[..., channel] *= 100.0
    return x


LOW = torch.bfloat16
CASES: dict[str, tuple[nn.Module, tuple[Tensor, ...], Any, str]] = {
    "ignores eps": (Norm(), (rows(scale=1e-3),), subtle.tried_norm, "ignores_eps"),
    "ignores eps, bf16": (Norm().to(LOW), (rows(scale=1e-3, dtype=LOW),), subtle.tried_norm, "ignores_eps"),
    "clips outliers": (Norm(), (outliers(),), subtle.tried_norm, "clips"),
    "rounds in another place": (
        subtle.CentredNorm().to(LOW), ((rows() + 8.0).to(LOW),), subtle.tried_centred_norm, "rounds_the_mean",
    ),
    "swaps gate and up": (Mlp(), (rows(),), subtle.tried_mlp, "swaps"),
    "swaps gate and up, bf16": (Mlp().to(LOW), (rows(dtype=LOW),), subtle.tried_mlp, "swaps"),
    "computes in TF32": (Mlp(), (rows(),), subtle.tried_mlp, "tf32"),
    "stacks in the wrong order": (Mlp(), (rows(),), subtle.tried_mlp, "stacked_swapped"),
    "wrong first result": (subtle.AddNorm(), (rows(), rows(seed=1)), subtle.tried_add_norm, "forgets_the_residual"),
    "wrong second result": (subtle.AddNorm(), (rows(), rows(seed=1)), subtle.tried_add_norm, "norms_x"),
}  # fmt: skip
TWINS = {"stacked_swapped": "stacked"}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_a_subtly_wrong_kernel_fails_and_its_right_twin_passes(case: str) -> None:
    model, args, pattern, kernel = CASES[case]
    twin = fxfuse.verify(model, args, options=options(pattern, TWINS.get(kernel, "right")))
    (site,) = twin.sites
    assert (site.outcome, site.code) == ("rewritten", "")
    assert site.numbers is not None
    assert site.numbers.within
    assert twin.ok
    assert twin.verified == {pattern.name: 1}

    report = fxfuse.verify(model, args, options=options(pattern, kernel))
    (site,) = report.sites
    assert (site.outcome, site.code, site.kernel) == ("kept", "VERIFY", "")
    assert site.reason.startswith(f"kernel {kernel} is off from float64 by max ")
    assert site.numbers is not None
    assert not site.numbers.within
    assert site.numbers.inputs == INPUTS
    assert not report.ok
    assert not report.verified
    assert report.matched == {pattern.name: 1}


@torch.no_grad()
def test_the_result_that_is_wrong_is_named() -> None:
    for kernel, which in (("forgets_the_residual", 1), ("norms_x", 2)):
        report = fxfuse.verify(subtle.AddNorm(), (rows(), rows(seed=1)), options=options(subtle.tried_add_norm, kernel))
        assert report.sites[0].reason.endswith(f"in result {which} of 2")
        assert report.sites[0].numbers.result == which - 1


@torch.no_grad()
def test_only_what_the_call_shows_is_told() -> None:
    """Without outliers nothing is clipped: these are the call's own inputs, and no others."""
    assert fxfuse.verify(Norm(), (rows(),), options=options(subtle.tried_norm, "clips")).ok


@torch.no_grad()
def test_a_kernel_that_fails_when_run() -> None:
    report = fxfuse.verify(Norm(), (rows(),), options=options(subtle.tried_norm, "fails"))
    assert report.sites[0].code == "VERIFY"
    assert report.sites[0].reason == "kernel fails: it fails: RuntimeError: no kernel image is available"


@torch.no_grad()
def test_tol_takes_the_place_of_the_contract() -> None:
    model, args = Mlp(), (rows(),)
    assert fxfuse.verify(model, args, options=options(subtle.tried_mlp, "tf32"), tol=1e-2).ok
    assert not fxfuse.verify(model, args, options=options(subtle.tried_mlp, "tf32"), tol=1e-4).ok
    assert not fxfuse.verify(model, args, options=options(subtle.tried_mlp, "right"), tol=0.0).ok
    for bad in (-1.0, float("inf"), float("nan"), True, "1e-3"):
        with pytest.raises(fxfuse.OptionError, match="tol is a relative error of at least 0; given"):
            fxfuse.verify(model, args, tol=bad)  # type: ignore[arg-type]  # is the case


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", ["separate", "share", "copy", "inline"])
def test_the_standard_library_holds_and_no_parameter_moves(weights: str, dtype: torch.dtype) -> None:
    model, x = Tiny().to(dtype), batch().to(dtype)
    before = [(id(p), p.data_ptr(), p._version) for p in model.parameters()]
    report = fxfuse.verify(model, (x,), options={"weights": weights, "extra_memory": 1.0})
    assert report.ok, report
    assert report.verified[PATTERN] == 2
    assert {s.weights for s in report.sites} == {weights}
    assert [(id(p), p.data_ptr(), p._version) for p in model.parameters()] == before
    assert groups_of(model) == ()


def test_a_real_model_in_grad_mode() -> None:
    report = fxfuse.verify(tiny_llama(), (), {"input_ids": torch.arange(12).reshape(2, 6)})
    assert report.ok, report
    assert report.verified[PATTERN] == 2


# --- where the values come from -------------------------------------------------------------------------------------


class Chain(nn.Module):
    """The same norm on ever larger outliers, in frames of their own: one graph, run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Norm()

    def forward(self, x: Tensor) -> Tensor:
        for factor in (1.0, 100.0):
            y = x.clone()
            y[..., 3] *= factor
            x = self.norm(y)
            torch._dynamo.graph_break()
        return x


@torch.no_grad()
def test_a_graph_that_runs_twice_is_judged_by_the_worse_run() -> None:
    assert fxfuse.verify(Chain(), (rows(),), options=options(subtle.tried_norm, "right")).ok
    report = fxfuse.verify(Chain(), (rows(),), options=options(subtle.tried_norm, "clips"))
    assert "VERIFY" in {s.code for s in report.sites}
    assert not report.ok


class Checkpointed(nn.Module):
    def __init__(self, deeper: bool = False) -> None:
        super().__init__()
        self.mlp = Mlp()
        self.deeper = deeper

    def inner(self, x: Tensor) -> Tensor:
        return checkpoint(self.mlp, x, use_reentrant=False) + 1.0  # type: ignore[no-any-return]  # checkpoint is untyped

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner if self.deeper else self.mlp, 2.0 * x, use_reentrant=False) - 1.0  # type: ignore  # as above


@pytest.mark.parametrize("deeper", [False, True])
def test_sites_inside_checkpointed_bodies_are_measured(deeper: bool) -> None:
    model, x = Checkpointed(deeper), rows().requires_grad_()
    kernels = options(subtle.tried_mlp, "reference")
    report = fxfuse.verify(model, (x,), options=kernels)
    assert report.ok, report
    wrong = options(subtle.tried_mlp, "swaps_with_backward")
    report = fxfuse.verify(model, (x,), options=wrong)
    assert [s.code for s in report.sites] == ["VERIFY"]


class WritesBetween(nn.Module):
    """``x`` changes between the projections, so they are no site; without that gate they would be one."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.nn.functional.silu(self.mlp.gate(x))
        x.mul_(1.5)
        return self.mlp.down(gate * self.mlp.up(x))  # type: ignore[no-any-return]  # a module's attribute


@torch.no_grad()
def test_a_site_that_should_have_been_refused_does_not_hold() -> None:
    x = rows()
    refused = fxfuse.verify(WritesBetween(), (x,), options=options(subtle.tried_mlp, "right", on_miss="silent"))
    assert [s.code for s in refused.sites] == ["MUTATION"]
    with lifted("gate.mutation"):
        report = fxfuse.verify(WritesBetween(), (x,), options=options(subtle.tried_mlp, "right"))
    assert [s.code for s in report.sites] == ["VERIFY"]


class WritesAfter(nn.Module):
    """What the site read is overwritten right behind it, and so is its result."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(x)
        x.zero_()
        y.mul_(3.0)
        return y + x  # type: ignore[no-any-return]  # what a module returns


@torch.no_grad()
def test_writes_behind_the_site_do_not_matter() -> None:
    x = rows()
    assert fxfuse.verify(WritesAfter(), (x,), options=options(subtle.tried_mlp, "right")).ok
    assert not fxfuse.verify(WritesAfter(), (x,), options=options(subtle.tried_mlp, "swaps")).ok
    assert torch.equal(x, rows())


# --- what cannot be told --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_result_of_zeros_is_not_measured() -> None:
    model = Mlp()
    model.down.weight.zero_()
    for kernel in ("right", "swaps"):
        report = fxfuse.verify(model, (rows(),), options=options(subtle.tried_mlp, kernel))
        assert [s.code for s in report.sites] == ["VERIFY"]
        assert report.sites[0].reason == (
            "not measured: the exact result is zero or not finite everywhere, so that no error would show"
        )
        assert not report.ok


@torch.no_grad()
def test_where_eager_itself_is_lost_nothing_is_told() -> None:
    """All values of a row are nearly one: rounded to bf16, nothing is left of what the mean is subtracted from."""
    given = options(subtle.tried_rounded, "right")
    assert fxfuse.verify(subtle.Rounded(), (rows(),), options=given).ok
    report = fxfuse.verify(subtle.Rounded(), (1.0 + 1e-3 * rows(),), options=given)
    assert report.sites[0].reason.startswith("not measured: eager itself is off by rms ")


def test_no_sites_is_not_ok() -> None:
    report = fxfuse.verify(nn.Linear(4, 4), (torch.ones(2, 4),))
    assert not report.sites
    assert not report.ok


@torch.no_grad()
def test_an_explained_report_is_not_ok() -> None:
    report = fxfuse.explain(Norm(), (rows(),), options=options(subtle.tried_norm, "right"))
    assert report.rewritten
    assert not report.verified
    assert not report.ok


# --- what is left as it was -----------------------------------------------------------------------------------------


class Stateful(nn.Module):
    """Writes a buffer, a parameter, its argument and random state; replaces a buffer; and makes new ones."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Norm()
        self.batch_norm = nn.BatchNorm1d(6)
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("behind", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.batch_norm(self.norm(x))
        self.scale.mul_(2.0)
        self.behind.data.add_(1.0)
        torch._dynamo.graph_break()
        self.seen = self.seen + 1.0
        x.add_(1.0)
        return torch.nn.functional.dropout(y, 0.5) * self.scale + torch.randn(1)


@torch.no_grad()
@pytest.mark.parametrize("call", [fxfuse.verify, fxfuse.explain])
def test_nothing_is_changed(call: Any) -> None:
    model, x = Stateful().train(), rows()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: t.clone() for name, t in tensors.items()}
    state, x_before = torch.get_rng_state(), x.clone()
    report = call(model, (x,), options=options(subtle.tried_norm, "right"))
    assert report.rewritten == {subtle.tried_norm.name: 1}
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert {name: id(t) for name, t in after.items()} == {name: id(t) for name, t in tensors.items()}
    for name, value in values.items():
        assert torch.equal(after[name], value), name
    assert torch.equal(x, x_before)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_nothing_is_changed_by_a_call_that_raises() -> None:
    def fails(x: Tensor) -> Tensor:
        x.add_(1.0)
        torch._dynamo.graph_break()
        raise KeyError("a user's error")

    x = rows()
    with pytest.raises(KeyError, match="a user's error"):
        fxfuse.verify(fails, (x,))
    assert torch.equal(x, rows())


# --- what it says ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_report_as_text_and_json() -> None:
    model = nn.Sequential(Mlp(), Mlp())
    report = fxfuse.verify(model, (rows(),), options=options(subtle.tried_mlp, "right"))
    lines = [line for line in str(report).splitlines() if "verified" in line]
    assert len(lines) == 1  # one group of two sites
    worst = max(s.numbers.fused_max / s.numbers.allowed_max for s in report.sites)
    shown = next(s.numbers for s in report.sites if s.numbers.fused_max / s.numbers.allowed_max == worst)
    assert lines[0] == f"     verified, off from float64 by {shown}"
    loaded = fxfuse.Report.from_json(report.to_json())
    assert loaded == report
    assert loaded.ok

    wrong = fxfuse.verify(model, (rows(),), options=options(subtle.tried_mlp, "swaps"))
    assert [line.rstrip() for line in str(wrong).splitlines() if line.startswith("  x")] == ["  x2 {0-1}"]
    assert fxfuse.Report.from_json(wrong.to_json()) == wrong


@torch.no_grad()
def test_counts_are_of_sites_that_hold() -> None:
    wanted = {"expect_rewritten": {subtle.tried_mlp.name: 1}}
    fxfuse.verify(Mlp(), (rows(),), options=options(subtle.tried_mlp, "right", **wanted))
    with pytest.raises(fxfuse.ExpectationError, match="VERIFY kernel swaps is off"):
        fxfuse.verify(Mlp(), (rows(),), options=options(subtle.tried_mlp, "swaps", **wanted))


@pytest.mark.parametrize("args", [torch.ones(1), 3, None])
def test_args_that_are_no_sequence(args: Any) -> None:
    with pytest.raises(TypeError, match="verify takes args as a tuple of positional arguments"):
        fxfuse.verify(Norm(), args)
