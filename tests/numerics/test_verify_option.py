"""`verify=True`: each site is measured on random inputs before it is rewritten, and left where it cannot be trusted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from end_to_end.tiny import PATTERN, PLACEMENTS, Tiny, batch, close, recorded
from numerics import subtle
from numerics.subtle import Mlp, Norm, options, rows
from support import capture
from torch import Tensor, nn

import fxfuse

LOW = torch.bfloat16
CASES: dict[str, tuple[nn.Module, tuple[Tensor, ...], Any, str]] = {
    "ignores eps": (Norm(), (rows(),), subtle.tried_norm, "ignores_eps"),
    "clips outliers": (Norm(), (rows(),), subtle.tried_norm, "clips"),
    "fails when run": (Norm(), (rows(),), subtle.tried_norm, "fails"),
    "rounds in another place": (
        subtle.CentredNorm().to(LOW), (rows(dtype=LOW),), subtle.tried_centred_norm, "rounds_the_mean",
    ),
    "swaps gate and up": (Mlp(), (rows(),), subtle.tried_mlp, "swaps"),
    "computes in TF32": (Mlp(), (rows(),), subtle.tried_mlp, "tf32"),
    "stacks in the wrong order": (Mlp(), (rows(),), subtle.tried_mlp, "stacked_swapped"),
    "wrong first result": (subtle.AddNorm(), (rows(), rows(seed=1)), subtle.tried_add_norm, "forgets_the_residual"),
    "wrong second result": (subtle.AddNorm(), (rows(), rows(seed=1)), subtle.tried_add_norm, "norms_x"),
}  # fmt: skip
TWINS = {"stacked_swapped": "stacked"}


def compiled(model: Any, *args: Any, **more: Any) -> tuple[Any, fxfuse.Report]:
    """What the compiled model gives, over eager, and the report of its one graph."""
    torch._dynamo.reset()
    with recorded() as reports:
        out = torch.compile(model, backend=fxfuse.Backend(inner="eager", **more))(*args)
    (report,) = reports
    return out, report


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_a_wrong_kernel_is_not_trusted_and_its_right_twin_is(case: str) -> None:
    model, args, pattern, kernel = CASES[case]
    _, report = compiled(model, *args, verify=True, **options(pattern, TWINS.get(kernel, "right")))
    (site,) = report.sites
    assert (site.outcome, site.code) == ("rewritten", "")
    assert site.numbers is not None
    assert site.numbers.inputs == "6 random inputs"
    assert report.ok

    out, report = compiled(model, *args, verify=True, **options(pattern, kernel))
    (site,) = report.sites
    assert (site.outcome, site.code) == ("kept", "VERIFY")
    assert f"kernel {kernel}" in site.reason
    torch.testing.assert_close(out, model(*args), rtol=0.0, atol=0.0)  # the site as it was
    assert not report.ok

    (site,) = fxfuse.explain(model, args, options=options(pattern, kernel)).sites
    assert (site.outcome, site.numbers) == ("rewritten", None)  # nobody asked


@torch.no_grad()
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_standard_library_is_trusted(placement: str, dtype: torch.dtype) -> None:
    model, x = Tiny().to(dtype), batch().to(dtype)
    want = model(x)
    out, report = compiled(model, x, verify=True, on_error="raise", **PLACEMENTS[placement])
    assert report.ok, report
    assert report.verified[PATTERN] == 2
    torch.testing.assert_close(out, want)


def test_it_works_in_grad_mode_and_leaves_random_state() -> None:
    model, x = Tiny(), batch()
    state = torch.get_rng_state()
    out, report = compiled(model, x, verify=True)
    assert report.verified[PATTERN] == 2
    assert torch.equal(torch.get_rng_state(), state)
    close(out, model(x))
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@torch.no_grad()
def test_symbolic_sizes_take_their_hints() -> None:
    for kernel, outcome in (("right", "rewritten"), ("swaps", "kept")):
        model, x = Mlp(), rows()
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(x, 1)
        out, report = compiled(model, x, verify=True, **options(subtle.tried_mlp, kernel))
        assert [s.outcome for s in report.sites] == [outcome]
        close(out, model(x))


@torch.no_grad()
def test_live_weights_are_used() -> None:
    """With a down projection of zeros no error can show, and so the site is not trusted."""
    model = Mlp()
    model.down.weight.zero_()
    _, report = compiled(model, rows(), verify=True, **options(subtle.tried_mlp, "right"))
    assert report.sites[0].reason.startswith("not measured: the exact result is zero")


@torch.no_grad()
def test_explain_and_rewrite_take_the_option() -> None:
    model, x = Mlp(), rows()
    for kernel, outcome in (("right", "rewritten"), ("swaps", "kept")):
        given = options(subtle.tried_mlp, kernel, verify=True)
        assert [s.outcome for s in fxfuse.explain(model, (x,), options=given).sites] == [outcome]
        torch._dynamo.reset()
        gm, examples = capture(model, x)
        before = gm.code
        report = fxfuse.rewrite(gm, options=given)
        assert [s.outcome for s in report.sites] == [outcome]
        assert (gm.code == before) == (outcome == "kept")
        torch.testing.assert_close(gm(*examples)[0], model(x))


@torch.no_grad()
@pytest.mark.parametrize("decomposed", [False, True])
def test_exported_programs(decomposed: bool) -> None:
    model, x = Norm(), rows()
    for kernel, outcome in (("right", "rewritten"), ("clips", "kept")):
        program = torch.export.export(model, (x,))
        program = program.run_decompositions() if decomposed else program
        report = fxfuse.rewrite(program, options=options(subtle.tried_norm, kernel, verify=True))
        assert [s.outcome for s in report.sites] == [outcome], report
        close(program.module()(x), model(x))


def test_its_values() -> None:
    assert fxfuse.Backend(verify=True) != fxfuse.Backend()
    assert fxfuse.Backend(verify=False) == fxfuse.Backend()
    assert fxfuse.Backend(verify=None) == fxfuse.Backend()
    for bad in ("yes", 1, [True]):
        with pytest.raises(fxfuse.OptionError, match="verify is True or False; given"):
            fxfuse.Backend(verify=bad)
