"""The example pack, installed as a third party's: used by name, checked, beside other packs, and with a broken one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.examples.packs import FORECASTING, answer, environment, install, run, write_pack

MODEL = """
import json, warnings
import torch, torch.nn.functional as F
from torch import nn

class Gated(nn.Module):
    def __init__(self, size=24):
        super().__init__()
        torch.manual_seed(0)
        self.packed, self.norm = nn.Linear(size, 2 * size), nn.LayerNorm(size)
        self.requires_grad_(False)

    def forward(self, x):
        return self.norm(F.glu(self.packed(x)) + x)

def compiled(**options):
    torch._dynamo.reset()
    model, x = Gated(), torch.randn(2, 5, 24)
    result = torch.compile(model, backend="fxfuse", options={"inner": "aot_eager", "on_error": "raise", **options})(x)
    torch.testing.assert_close(result, model(x), rtol=1e-5, atol=1e-5)
    import fxfuse
    (site,) = [s for s in fxfuse.reports()[-1].sites if s.pattern == "gate_add_norm"]
    return [site.outcome, site.kernel, dict(site.variant), list(site.modules)]
"""

TWIN = """
import torch.nn.functional as F
import fxfuse
from fxfuse import Dim, Input, Param, Scalar

N = Dim("n")

@fxfuse.pattern("gate_add_norm")
def another(packed=Input(..., 2 * N), skip=Input(..., N), w=Param(N), b=Param(N), eps=Scalar(float)):
    return F.layer_norm(skip + F.glu(packed, dim=-1), w.shape, w, b, eps)

@fxfuse.kernel(another, name="plain", default=True)
def plain(packed, skip, w, b, *, eps):
    return F.layer_norm(F.glu(packed, dim=-1) + skip, w.shape, w, b, eps)

@fxfuse.kernel(another, name="only_here")
def only_here(packed, skip, w, b, *, eps):
    return plain(packed, skip, w, b, eps=eps)
"""


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forecasting")
    install(FORECASTING, folder / "site", folder / "build")
    return folder / "site"


def test_added_by_name_with_its_kernels(pack: Path) -> None:
    script = (
        MODEL
        + """
name = "forecasting::gate_add_norm"
found = [compiled(add=[name]), compiled(add=["gate_add_norm"], kernels={name: "triton"}), compiled(patterns=[name])]
print(json.dumps(found))
"""
    )
    here = [{"gate": "glu"}, ["norm"]]
    assert answer(script, pack, TRITON_INTERPRET="1") == [
        ["rewritten", "plain", *here],
        ["rewritten", "triton", *here],
        ["rewritten", "plain", *here],
    ]


def test_not_active_unless_added_and_a_typo_is_an_error(pack: Path) -> None:
    script = (
        MODEL
        + """
import fxfuse
model, x = Gated(), torch.randn(2, 24)
said = []
for options in ({"add": ["forecasting::gate_ad_norm"]}, {"add": ["forecasting::gate_add_norm"],
                "kernels": {"forecasting::gate_add_norm": "tritn"}}):
    try:
        fxfuse.explain(model, (x,), options=options)
    except ValueError as error:
        said.append(str(error))
print(json.dumps([len(fxfuse.explain(model, (x,)).sites), *said]))
"""
    )
    sites, pattern, kernel = answer(script, pack)
    assert sites == 0
    assert "unknown pattern 'forecasting::gate_ad_norm'" in pattern
    assert "Did you mean 'triton'?" in kernel


def test_the_triton_kernel_is_refused_where_it_cannot_run(pack: Path) -> None:
    script = (
        MODEL
        + """
import fxfuse
try:
    compiled(add=["gate_add_norm"], kernels={"gate_add_norm": "triton"})
except ValueError as error:
    print(json.dumps(str(error)))
"""
    )
    said = answer(script, pack)
    assert "kernel 'triton' needs a cuda device; the site is on cpu" in said


def test_fxfuse_check_passes(pack: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "fxfuse.cli", "check", "forecasting", "--quick"]
    done = run(command, env=environment(pack, TRITON_INTERPRET="1"), cwd=pack)
    assert "forecasting::gate_add_norm" in done.stdout
    assert "1 of 1 patterns passed" in done.stdout
    assert "did not run here" not in done.stdout


@pytest.mark.parametrize(("interpreted", "files"), [("1", "tests"), ("", "tests/test_triton.py")])
def test_the_pack_passes_its_own_tests(pack: Path, interpreted: str, files: str) -> None:
    """Once with the Triton kernel run on the CPU, once with it compiled for cards that are not here."""
    pytest.importorskip("triton", reason="Triton is an extra, and brought by some builds of torch only")
    more = {"TRITON_INTERPRET": "1"} if interpreted else {}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", files]
    done = run(command, env=environment(pack, **more), cwd=pack.parent / "build")
    assert " passed" in done.stdout


def test_two_packs_with_one_pattern_name(pack: Path, tmp_path: Path) -> None:
    write_pack(tmp_path, "elsewhere", "elsewhere_patterns", TWIN)
    script = (
        MODEL
        + """
import fxfuse
ours, theirs = "forecasting::gate_add_norm", "elsewhere::gate_add_norm"
said = []
for options in ({"add": ["gate_add_norm"]}, {"add": [ours, theirs]}, {"add": [ours], "kernels": {ours: "only_here"}}):
    try:
        fxfuse.explain(Gated(), (torch.randn(2, 24),), options=options)
    except ValueError as error:
        said.append(str(error))
print(json.dumps([
    compiled(add=[ours]), compiled(add=[theirs]), compiled(add=[theirs], kernels={theirs: "only_here"}), *said,
]))
"""
    )
    ours, theirs, named, ambiguous, both, foreign = answer(script, pack, tmp_path)
    assert ours[:3] == ["rewritten", "plain", {"gate": "glu"}]
    assert theirs[:3] == ["rewritten", "plain", {}]
    assert named[:3] == ["rewritten", "only_here", {}]
    assert "in several packs; name one of ['elsewhere::gate_add_norm', 'forecasting::gate_add_norm']" in ambiguous
    assert "pattern 'gate_add_norm' is active twice" in both
    assert "'only_here'" in foreign


def test_packs_that_fail_on_import_cost_nobody_else(pack: Path, tmp_path: Path) -> None:
    broken = {"missing": "import not_installed_anywhere", "exits": "raise SystemExit(3)", "typo": "def broken(:\n"}
    for name, code in broken.items():
        write_pack(tmp_path, name, f"{name}_patterns", code)
    script = (
        MODEL
        + """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    row = compiled(add=["forecasting::gate_add_norm"])
    import fxfuse
    from fxfuse import library
said = [str(w.message) for w in caught if "pattern pack" in str(w.message)]
print(json.dumps([row[0], "fxfuse::rms_norm_gated_mlp" in library.all_patterns(), said]))
"""
    )
    outcome, standard, said = answer(script, pack, tmp_path)
    assert (outcome, standard) == ("rewritten", True)
    assert [sentence.partition(":")[2].partition(" at ")[0] for sentence in said] == [
        " pattern pack 'exits' (exits_patterns) cannot be loaded: SystemExit: 3",
        " pattern pack 'missing' (missing_patterns) cannot be loaded: ModuleNotFoundError: "
        "No module named 'not_installed_anywhere'",
        " pattern pack 'typo' (typo_patterns) cannot be loaded: SyntaxError: invalid syntax (typo_patterns.py, line 1)",
    ]


def test_checking_a_broken_pack_says_what_is_wrong(tmp_path: Path) -> None:
    write_pack(tmp_path, "broken", "broken_patterns", "import not_installed_anywhere")
    command = [sys.executable, "-W", "ignore", "-m", "fxfuse.cli", "check", "broken"]
    done = run(command, code=2, env=environment(tmp_path), cwd=tmp_path)
    assert "No module named 'not_installed_anywhere'" in done.stderr
