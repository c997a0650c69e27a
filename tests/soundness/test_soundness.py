"""The soundness fuzz in small: nothing wrong in a few hundred programs, and a fault that is there is found."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("bench.soundness", reason="the bench is not part of an installed fxfuse")

from bench.soundness.execute import check
from bench.soundness.generate import generate
from bench.soundness.patterns import everything
from bench.soundness.program import Operand, Program, Step, operands, scope
from bench.soundness.prove import try_one
from bench.soundness.repro import save, script
from bench.soundness.setting import DYNAMO, Setting
from bench.soundness.shrink import shrink
from bench.soundness.tracing import trace
from bench.soundness.worker import Task, one, work
from fxfuse.safeguards import SAFEGUARDS, lifted

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.timeout(240)
def test_nothing_is_wrong_in_a_few_hundred_programs(tmp_path: Path) -> None:
    totals = work(Task(seed=1, graphs=300, dynamo=0.03, aten=0.03, scripts=tmp_path, shrink_seconds=5.0))
    assert [(f.index, f.what) for f in (*totals.wrong, *totals.crashes)] == []
    assert totals.graphs == 300
    assert totals.rewritten_graphs > 90, "programs that never match prove nothing"
    assert len(totals.rewritten) > 15, f"most patterns should be met: {totals.rewritten}"
    assert {"OP", "MUTATION", "EXTERNAL_USE", "NOT_A_PARAM"} <= set(totals.refused)
    assert sum(totals.skipped.values()) < 0.03 * totals.graphs, f"too many programs were not asked: {totals.skipped}"


def test_equal_seeds_give_equal_programs_and_others_do_not() -> None:
    patterns = everything()
    first = [generate(3, i, patterns) for i in range(12)]
    again = [generate(3, i, patterns) for i in reversed(range(12))][::-1]
    assert first == again, "a program may depend on its seed and index only, not on those made before it"
    other = [generate(4, i, patterns) for i in range(12)]
    assert all(a.source != b.source for a, b in zip(first, other, strict=True))


def test_operands_are_equal_for_equal_seeds() -> None:
    program = generate(3, 5, everything())
    a, b, c = (operands(program, seed) for seed in (1, 1, 2))
    assert all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(a.values(), b.values(), strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(a.values(), c.values(), strict=True))


@pytest.mark.parametrize("name", ["gate.mutation", "exponent", "rounded_once", "inactive_dropout", "same_dtype"])
def test_a_lifted_safeguard_is_noticed(name: str) -> None:
    shown = try_one(name, Task(seed=0, graphs=0, dynamo=0.0), most=400, seconds=60.0)
    assert shown.what, f"{name} was lifted, and {shown.graphs} programs were none the wiser"


def test_a_safeguard_that_holds_is_no_finding() -> None:
    """What `try_one` reports is right with the safeguard: the same program, checked without lifting it."""
    shown = try_one("exponent", Task(seed=0, graphs=0, dynamo=0.0), most=400, seconds=60.0)
    task = Task(seed=0, graphs=0, dynamo=0.0, target="exponent")
    _, _, verdict = one(task, shown.index, everything())
    assert not verdict.failed


# --- shrinking ------------------------------------------------------------------------------------------------------

SETTING = Setting(capture="fake", patterns=("fuzz_nested_choice",))
PLANTED = Program(
    operands=(
        Operand("x0", (2, 3, 8)), Operand("x1", (4, 8)), Operand("p0", (6, 8), scale=0.5), Operand("p1", (8, 8)),
        Operand("b0", (8,)),
    ),
    steps=tuple(
        Step(text)
        for text in (
            "t0 = x0 * 1.5", "t1 = F.linear(t0, p0)", "t2 = F.relu(t1)", "t3 = t2 ** 3", "t4 = t3 * 2.0",
            "t5 = F.linear(x1, p1)", "t6 = t5 + b0", "t7 = torch.tanh(t6)", "t8 = t4.sum(-1)", "x1.mul_(2)",
        )
    ),
    outputs=("t4", "t7", "t8"),
)  # fmt: skip


def test_the_planted_program_is_right_and_wrong_with_its_safeguard_lifted() -> None:
    assert not check(PLANTED, SETTING, everything()).failed
    with lifted("exponent"):
        assert check(PLANTED, SETTING, everything()).kind == "wrong"


def test_a_failure_shrinks_to_what_it_needs_and_its_script_shows_it(tmp_path: Path) -> None:
    with lifted("exponent"):
        small = shrink(PLANTED, lambda p: check(p, SETTING, everything()).kind == "wrong", seconds=30.0)
        verdict = check(small, SETTING, everything())
        text = script(small, SETTING, verdict, everything(), "planted")
    assert verdict.kind == "wrong"
    assert [s.text.partition(" = ")[2] for s in small.steps] == [
        "F.linear(x0, p0)", "F.relu(t1)", "t2 ** 3", "t3 * 2.0",
    ]  # fmt: skip
    assert small.parameters == ("x0", "p0")
    assert len(small.outputs) == 1
    path = save(text, tmp_path, "planted")
    ran = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "result 0 differs" in ran.stdout
    assert "Traceback" not in ran.stderr
    path.write_text(text.replace("lifted(*('exponent',))", "lifted()"), encoding="utf-8")
    ran = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_what_cannot_shrink_stays() -> None:
    program = Program((Operand("x0", (2, 2)),), (Step("t0 = F.relu(x0)"),), ("t0",))
    assert shrink(program, lambda p: "relu" in p.source and p.outputs == ("t0",), seconds=5.0) == program


# --- the quick capture is Dynamo's ----------------------------------------------------------------------------------


def test_the_quick_capture_computes_what_the_program_does() -> None:
    """Every program's recorded graph gives what eager gives, regions, writes and aliases included."""
    skipped: Counter[str] = Counter()
    for index in range(40):
        program, setting, verdict = one(Task(seed=9, graphs=0, dynamo=0.0, aten=0.0), index, everything())
        del program, setting
        skipped[verdict.skipped.partition(":")[0]] += bool(verdict.skipped)
    assert not skipped["the captured graph itself differs from eager"]


def test_the_quick_capture_has_dynamos_nodes() -> None:
    """Regions, in-place ops, parts of tuples, attributes, a checkpoint: the same targets."""
    program = Program(
        operands=(Operand("x0", (4, 6)), Operand("p0", (6, 6))),
        steps=(
            Step("t0 = F.linear(x0, p0)", ("autocast",)),
            Step("t1 = x0.chunk(2, -1)[1]"),
            Step("x0.mul_(2)"),
            Step("t2 = 1 / (p0.T + 1)", ("no_grad",)),
            Step("t3 = F.silu(t2)", ("checkpoint0",)),
            Step("t4 = t3[..., 1:]"),
        ),
        outputs=("t0", "t1", "t2", "t4"),
        grad=True,
    )
    from bench.soundness.dynamo import capture_with_dynamo

    ours, theirs = trace(program).gm, capture_with_dynamo(program, 0).gm
    assert _targets(ours) == _targets(theirs)
    assert _targets(ours.wrap_body_0) == _targets(theirs.wrap_body_0)


def _targets(gm: torch.fx.GraphModule) -> Counter[str]:
    names = (getattr(n.target, "__name__", str(n.target)) for n in gm.graph.nodes if n.op.startswith("call_"))
    return Counter(names)


def test_dynamo_and_the_quick_capture_agree_on_sites() -> None:
    patterns = everything()
    for index in range(6):
        program, setting, verdict = one(Task(seed=5, graphs=0, dynamo=0.0, aten=0.0), index, patterns)
        seen = check(program, Setting(DYNAMO, setting.patterns, setting.kernels), patterns)
        if seen.skipped or verdict.skipped:
            continue
        counts = [Counter(s.pattern for s in v.sites if s.outcome == "rewritten") for v in (verdict, seen)]
        assert counts[0] == counts[1], program.source


def test_programs_are_text_that_runs() -> None:
    for index in range(10):
        program = generate(2, index, everything())
        results = program.function(scope())(*operands(program, 0).values())
        assert len(results) == len(program.outputs)


def test_every_safeguard_has_programs_that_need_it() -> None:
    from bench.soundness.targets import TARGETS

    everything()
    assert set(TARGETS) <= set(SAFEGUARDS), "a target names a safeguard that is no more"
    assert set(SAFEGUARDS) <= set(TARGETS), "a safeguard has no target: say which pieces need it"
