"""Liger's functions as kernels of patterns: a stand-in package with its names, its signatures and its habits.

As in Liger, the functions launch on real memory only, and the backward of the products writes the gradients over the
tensors that the forward saved.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fxfuse
from fxfuse import PatternError
from fxfuse.adapters import from_liger
from fxfuse.kernels import kernels_for
from fxfuse.numerics.contract import within
from tests.support import Net, mlp, plain, rms, rows

RMS_NORM = """
import torch

class LigerRMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):
        assert X.untyped_storage().data_ptr(), "a launch on memory that is not there"
        wide = X.float()
        rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.in_place, ctx.offset = in_place, offset
        ctx.save_for_backward(X, W, rstd)
        if casting_mode == "llama":
            return (wide * rstd).to(X.dtype) * (offset + W)
        return (wide * rstd * (offset + W.float())).to(X.dtype)

    @staticmethod
    def backward(ctx, dY):
        X, W, rstd = ctx.saved_tensors
        wide, up = X.float(), dY.float() * (ctx.offset + W.float())
        dX = rstd * (up - wide * rstd.square() * (up * wide).mean(-1, keepdim=True))
        dW = (dY.float() * wide * rstd).flatten(0, -2).sum(0)
        if ctx.in_place:
            dX = dY.copy_(dX)
        return dX.to(X.dtype), dW.to(W.dtype), None, None, None, None, None
"""
PRODUCT = """
import torch
import torch.nn.functional as F

class NAME(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        assert a.untyped_storage().data_ptr(), "a launch on memory that is not there"
        ctx.save_for_backward(a, b)
        return ACT(a) * b

    @staticmethod
    def backward(ctx, dc):
        a, b = ctx.saved_tensors
        with torch.enable_grad():
            x = a.detach().clone().requires_grad_()
            y = ACT(x)
            (slope,) = torch.autograd.grad(y, x, dc * b)
        b.copy_(dc * y.detach())
        a.copy_(slope)
        return a, b
"""
FILES = {
    "rms_norm": RMS_NORM,
    "swiglu": PRODUCT.replace("NAME", "LigerSiLUMulFunction").replace("ACT", "F.silu"),
    "geglu": PRODUCT.replace("NAME", "LigerGELUMulFunction").replace("ACT(", 'F.gelu(approximate="tanh", input='),
}


def install(folder: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    package = folder / "liger_kernel" / "ops"
    package.mkdir(parents=True)
    for place in (package.parent, package):
        (place / "__init__.py").write_text("")
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))


@pytest.fixture(autouse=True)
def not_installed() -> Iterator[None]:
    """Each test begins and ends without the package."""
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] == "liger_kernel"]:
        del sys.modules[name]


@pytest.fixture
def liger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, FILES, monkeypatch)


def options(pattern: str, **more: Any) -> dict[str, Any]:
    return {"patterns": [pattern], "kernels": {pattern: "liger"}, "on_miss": "silent", "on_error": "raise", **more}


def run(model: Any, *args: Any, pattern: str, inner: str = "eager") -> Any:
    return torch.compile(model, backend=fxfuse.Backend(**options(pattern, inner=inner)))(*args)


def late(m: Net, x: torch.Tensor) -> torch.Tensor:
    h = x.float()
    return (m.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6))).to(x.dtype)


def offset(m: Net, x: torch.Tensor) -> torch.Tensor:
    h = x.float()
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + m.weight.float())).to(x.dtype)


def geglu(m: Net, h: torch.Tensor) -> torch.Tensor:
    gate = torch.nn.functional.gelu(h @ m.gate.t(), approximate="tanh")
    return torch.nn.functional.linear(gate * (h @ m.up.t()), m.down, m.down_bias)


CASES = [
    ("rms_norm", rms),
    ("rms_norm", late),
    ("rms_norm", offset),
    ("gated_mlp", mlp),
    ("gated_mlp", geglu),
    ("rms_norm_gated_mlp", plain),
    ("rms_norm_gated_mlp", lambda m, x: geglu(m, offset(m, x))),
]


@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("pattern", "body"), CASES)
def test_a_function_gives_what_eager_gives(pattern: str, body: Any, dtype: torch.dtype) -> None:
    from_liger(pattern, device="cpu")
    model, x = Net(body, dtype), rows(dtype=dtype)
    wide = Net(body, torch.float64)
    wide.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    assert within(run(model, x, pattern=pattern), model(x), wide(x.double()))
    (site,) = fxfuse.reports()[-1].sites
    assert (site.outcome, site.kernel) == ("rewritten", "liger")


@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize(("pattern", "body"), CASES)
def test_gradients_are_eager_s_although_liger_writes_over_what_it_saved(pattern: str, body: Any, inner: str) -> None:
    from_liger(pattern, device="cpu")
    model = Net(body).requires_grad_(True)
    twin = copy.deepcopy(model)
    x = rows().requires_grad_(True)
    y = rows().requires_grad_(True)
    kept = x.detach().clone()
    got, want = run(model, x, pattern=pattern, inner=inner), twin(y)
    assert fxfuse.reports()[-1].sites[0].outcome == "rewritten"
    seed = torch.randn_like(want)
    before = seed.clone()
    for _ in range(2):
        got.backward(seed, retain_graph=True)
        want.backward(seed, retain_graph=True)
    assert torch.equal(seed, before)
    assert torch.equal(x.detach(), kept)
    torch.testing.assert_close(x.grad, y.grad)
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)


@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize(("pattern", "body"), CASES)
def test_no_rows_at_all(pattern: str, body: Any) -> None:
    """There is nothing to try a kernel on, so such a graph is left as it is."""
    from_liger(pattern, device="cpu")
    model, empty = Net(body), torch.empty(0, 3, 8)
    assert run(model, empty, pattern=pattern).shape == model(empty).shape
    (site,) = fxfuse.reports()[-1].sites
    assert (site.outcome, site.code) == ("kept", "VERIFY")


@pytest.mark.usefixtures("liger")
def test_a_graph_that_was_compiled_for_rows_runs_without_any() -> None:
    """Liger launches a program for each row, and a grid of none is an error there."""
    from_liger("rms_norm", "gated_mlp", device="cpu")
    norm, product = (kernels_for(name)["liger"].function for name in ("rms_norm", "gated_mlp"))
    x = torch.empty(0, 8, requires_grad=True)
    w, m = torch.ones(8, requires_grad=True), torch.ones(8, 8, requires_grad=True)
    norm(x, w, eps=1e-6, norm="early").sum().backward()
    product(x, m, m, m, None, None, None, act="silu").sum().backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 8)
    for weight in (w, m):
        assert weight.grad is None or not weight.grad.any()


@pytest.mark.usefixtures("liger")
def test_nobody_gets_one_who_did_not_name_it() -> None:
    assert [p.name for p in from_liger(device="cpu")] == ["rms_norm", "gated_mlp", "rms_norm_gated_mlp"]
    report = fxfuse.explain(Net(plain), (rows(),))
    assert {site.kernel for site in report.sites} <= {"plain", "stacked", "cpu_fp32_gemm", ""}


@pytest.mark.usefixtures("liger")
def test_a_site_that_it_cannot_serve_raises_where_it_was_named() -> None:
    from_liger("rms_norm", "gated_mlp", device="cpu")

    def relu(m: Net, x: torch.Tensor) -> torch.Tensor:
        return (torch.relu(x @ m.gate.t()) * (x @ m.up.t())) @ m.down.t()

    with pytest.raises(fxfuse.OptionError, match=r"needs act in \{gelu_tanh, silu\}; the site has relu"):
        fxfuse.explain(Net(relu), (rows(),), options=options("gated_mlp"))
    report = fxfuse.explain(Net(rms), (rows(),), options={"patterns": ["rms_norm"], "kernels": {"rms_norm": "liger"}})
    assert report.rewritten == {"rms_norm": 1}
    from_liger("rms_norm", force=True)
    with pytest.raises(fxfuse.OptionError, match="needs a cuda or xpu device; the site is on cpu"):
        fxfuse.explain(Net(rms), (rows(),), options=options("rms_norm"))


def test_a_version_with_another_function_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose norm forgets its eps: right in name and signature, and kept out where it is tried."""
    install(tmp_path, {**FILES, "rms_norm": RMS_NORM.replace("+ eps", "+ 1e-3")}, monkeypatch)
    from_liger("rms_norm", device="cpu")
    (site,) = fxfuse.explain(Net(rms), (rows(),), options=options("rms_norm")).sites
    assert (site.outcome, site.code) == ("kept", "VERIFY")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, r"the package 'liger-kernel' is needed for from_liger, and gives no liger_kernel.ops.rms_norm"),
        ({"rms_norm": "class LigerNorm: pass"}, "gives no liger_kernel.ops.rms_norm.LigerRMSNormFunction"),
        (
            {"rms_norm": RMS_NORM.replace(', casting_mode="llama", in_place=True, row_mode=None', "")},
            r"LigerRMSNormFunction of liger-kernel of unknown version takes 4 arguments, and 6 are needed",
        ),
    ],
)
def test_a_missing_or_old_package_is_named(
    files: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if files:
        install(tmp_path, files, monkeypatch)
    with pytest.raises(PatternError, match=said):
        from_liger("rms_norm")


@pytest.mark.usefixtures("liger")
def test_another_pattern_raises() -> None:
    with pytest.raises(PatternError, match=r"from_liger: unknown pattern 'rope'\..*Valid: 'gated_mlp', 'rms_norm'"):
        from_liger("rope")
