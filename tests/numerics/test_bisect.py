"""`bisect` names the first site whose rewrite is wrong, in few compiles, and leaves everything as it was."""

from __future__ import annotations

import math
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import subtle
from numerics.subtle import HIDDEN, Mlp, options, rows
from torch import Tensor, nn

import fxfuse
from fxfuse.numerics.bisect import BisectError
from fxfuse.testing import assert_fused

ROOT = Path(__file__).parents[2]


@fxfuse.kernel(subtle.tried_mlp, name="wrong_when_wide", backward="autograd")
def wrong_when_wide(x: Any, gate: Any, up: Any, down: Any) -> Any:
    """Right, but for sites with a wide middle."""
    return subtle._mlp(x, up, gate, down) if gate.shape[0] > subtle.INNER else subtle._mlp(x, gate, up, down)


class Wide(Mlp):
    def __init__(self) -> None:
        super().__init__()
        inner = 2 * subtle.INNER
        self.gate, self.up = nn.Linear(HIDDEN, inner, bias=False), nn.Linear(HIDDEN, inner, bias=False)
        self.down = nn.Linear(inner, HIDDEN, bias=False)


class Stack(nn.Module):
    """``count`` sites, of which those in ``wide`` have the variant in which the kernel is wrong."""

    def __init__(self, count: int, wide: tuple[int, ...] = (), breaks: bool = False) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Wide() if i in wide else Mlp() for i in range(count))
        self.breaks = breaks
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for part in self.parts:
            x = x + part(x)
            if self.breaks:
                torch._dynamo.graph_break()
        return x


WRONG = options(subtle.tried_mlp, "wrong_when_wide", inner="eager")


@torch.no_grad()
@pytest.mark.parametrize(("count", "wide"), [(1, (0,)), (4, (3,)), (8, (4, 5))])
def test_the_first_wrong_site_is_named(count: int, wide: tuple[int, ...]) -> None:
    found = fxfuse.bisect(Stack(count, wide), (rows(),), options=WRONG)
    assert found.site is not None
    assert found.site.modules == (f"parts.{wide[0]}",)
    assert (found.limit, found.sites) == (wide[0] + 1, count)
    assert found.compiles <= 3 + math.ceil(math.log2(count)) + 1
    assert f"rewrite {wide[0] + 1} of {count} breaks the check" in str(found)
    assert "result 0 is off from eager by" in found.why
    assert not found.holds


@torch.no_grad()
def test_verify_finds_the_same_site() -> None:
    report = fxfuse.verify(Stack(4, (2,)), (rows(),), options=WRONG)
    assert [s.code for s in report.sites] == ["", "", "VERIFY", ""]


@torch.no_grad()
def test_over_graph_breaks() -> None:
    found = fxfuse.bisect(Stack(5, (3,), breaks=True), (rows(),), options=WRONG)
    assert found.site is not None
    assert {c.path for c in found.site.captures if c.kind == "parameter"} == {
        f"parts.3.{n}.weight" for n in ("gate", "up", "down")
    }


@torch.no_grad()
def test_a_right_one_holds() -> None:
    found = fxfuse.bisect(Stack(3), (rows(),), options=WRONG)
    assert found.holds
    assert str(found) == "the check holds with all 3 sites rewritten (1 compiles)"


@torch.no_grad()
def test_a_check_of_the_users() -> None:
    seen = []

    def check(model: Any) -> bool:
        result = model(rows())
        seen.append(result)
        return bool(torch.allclose(result, seen[0].new_tensor(want), rtol=1e-3, atol=1e-4))

    model = Stack(4, (1,))
    want = model(rows()).tolist()
    found = fxfuse.bisect(model, (rows(),), options=WRONG, check=check)
    assert found.site is not None
    assert found.site.modules == ("parts.1",)
    assert found.why == "the check returned False"


def test_a_training_loss() -> None:
    torch.manual_seed(1)
    model, x, target = Stack(6, (4,)), rows(), rows(seed=5)

    def losses(run: Any) -> list[float]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        found = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = (run(x) - target).square().mean()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    state = {k: v.clone() for k, v in model.state_dict().items()}
    want = losses(model)
    model.load_state_dict(state)
    model.zero_grad()

    def check(run: Any) -> None:
        for found, wanted in zip(losses(run), want, strict=True):
            assert abs(found - wanted) < 1e-4 * abs(wanted), f"loss {found:.5f}, in eager {wanted:.5f}"

    found = fxfuse.bisect(model, options=WRONG, check=check)
    assert found.site is not None
    assert found.site.modules == ("parts.4",)
    assert found.why.startswith("AssertionError: loss ")
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()), "and nothing was trained"


def test_gradients_are_compared_where_they_are_wanted() -> None:
    model = Stack(3, (1,))
    found = fxfuse.bisect(model, (rows(),), options=WRONG)
    assert found.site is not None
    assert found.site.modules == ("parts.1",)
    assert all(p.grad is None for p in model.parameters())


@torch.no_grad()
def test_nothing_is_left_behind() -> None:
    model, x = Stack(4, (2,)), rows()
    before = [(id(p), p.data_ptr(), p._version) for p in model.parameters()]
    fxfuse.bisect(model, (x,), options={**WRONG, "kernels": {"tried_mlp": "stacked"}, "weights": "share"})
    assert [(id(p), p.data_ptr(), p._version) for p in model.parameters()] == before
    assert model.calls == 0
    assert_fused(model, (x,), expect={"tried_mlp": 4}, options=WRONG)


@torch.no_grad()
def test_past_the_recompile_limit() -> None:
    """Beyond it Dynamo captures nothing, and a bisection would find that nothing is wrong."""
    model, x = Stack(2, (1,)), rows()
    for i in range(10):
        torch.compile(model, backend=fxfuse.Backend(**{**WRONG, "kernels": {"tried_mlp": "right"}}))(x[: i % 4 + 1])
    found = fxfuse.bisect(model, (x,), options=WRONG)
    assert found.site is not None
    assert found.site.modules == ("parts.1",)


@torch.no_grad()
def test_no_answer_is_an_error_with_a_reason() -> None:
    with pytest.raises(BisectError, match="no site is rewritten in this call"):
        fxfuse.bisect(nn.Linear(3, 3), (torch.ones(2, 3),), options={**WRONG, "on_miss": "silent"})
    with pytest.raises(BisectError, match=r"the check fails without any rewrite, so no site is to blame: .*False"):
        fxfuse.bisect(Stack(2), (rows(),), options=WRONG, check=lambda run: run(rows()) is None)
    with pytest.raises(fxfuse.CaptureError, match="captured no graph"):
        fxfuse.bisect(Stack(2), (rows(),), options=WRONG, check=lambda run: None)
    with pytest.raises(fxfuse.OptionError, match="check is a function"):
        fxfuse.bisect(Stack(2), (rows(),), check=3)  # type: ignore[arg-type]  # is the case
    with pytest.raises(fxfuse.OptionError, match="tol is a relative error"):
        fxfuse.bisect(Stack(2), (rows(),), tol=-1.0)
    with pytest.raises(fxfuse.OptionError, match="unknown option"):
        fxfuse.bisect(Stack(2), (rows(),), options={"nothing": 1})


# --- fuel -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("limit", [0, 2, 9])
def test_the_environment_limits_rewrites(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXFUSE_LIMIT", str(limit))
    report = fxfuse.explain(Stack(4), (rows(),), options=options(subtle.tried_mlp, "right"))
    assert report.rewritten["tried_mlp"] == min(limit, 4)
    left = [s for s in report.sites if s.outcome == "kept"]
    assert {s.code for s in left} <= {"DISABLED"}
    assert all(f"FXFUSE_LIMIT={limit}" in s.reason for s in left)


@torch.no_grad()
def test_a_bad_limit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXFUSE_LIMIT", "few")
    with pytest.raises(fxfuse.OptionError, match=r"FXFUSE_LIMIT is how many sites may be rewritten.*'few'"):
        fxfuse.explain(Stack(1), (rows(),), options=options(subtle.tried_mlp, "right"))


# --- repro ------------------------------------------------------------------------------------------------------------


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "repro.py"
    path.write_text(script, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=environment, check=False)


@torch.no_grad()
def test_the_repro_shows_the_wrong_site_alone(tmp_path: Path) -> None:
    found = fxfuse.bisect(Stack(4, (2,)).to(torch.bfloat16), (rows(dtype=torch.bfloat16),), options=WRONG)
    done = run(found.repro, tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "VERIFY  kernel wrong_when_wide is off from float64" in done.stdout
    assert len(found.repro.splitlines()) < 60


@torch.no_grad()
def test_the_repro_of_a_right_site_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = fxfuse.repro(Stack(3, (2,)), (rows(),), site=1, options=WRONG)
    assert "torch.randn([48, 32])" in script
    path = tmp_path / "repro.py"
    path.write_text(script, encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path))
    assert end.value.code == 0
    assert "tried_mlp: 1 rewritten" in capsys.readouterr().out


@torch.no_grad()
def test_a_repro_needs_a_rewritten_site() -> None:
    with pytest.raises(fxfuse.OptionError, match="site=5 is not there: the call has 2 sites, counted from 0"):
        fxfuse.repro(Stack(2), (rows(),), site=5, options=WRONG)
    off = {**WRONG, "kernels": {"tried_mlp": "off"}, "on_miss": "silent"}
    with pytest.raises(fxfuse.OptionError, match="site=0 was kept, and a repro shows a rewrite: DISABLED"):
        fxfuse.repro(Stack(2), (rows(),), options=off)
