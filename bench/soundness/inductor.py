"""Rewritten graphs through Inductor, many in one compile: what is fused must still be right when Inductor lowers it.

Inductor is no oracle: where its result of a rewritten graph is off, it compiles the captured graph, too, and only
what is right there and wrong after the rewrite is fxfuse's fault.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from bench.soundness.compare import Ran, differs, exact, run
from bench.soundness.execute import SEED, Verdict
from bench.soundness.patterns import everything
from bench.soundness.program import Program, operands, scope
from bench.soundness.setting import ATEN, INDUCTOR, Setting
from bench.soundness.totals import Failing, Totals
from bench.soundness.worker import Task, one

BATCH = 25
"""Programs in one compile."""

LARGEST = 30
"""Nodes of a graph: Inductor's C++ compiler takes about two seconds for each program as it is."""

ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 16 * 2.0**-8, torch.float16: 16 * 2.0**-11}
"""Inductor keeps fp32 between fused operations and sums in its own order."""


@dataclass
class Case:
    """One rewritten program."""

    index: int
    program: Program
    setting: Setting
    verdict: Verdict

    @property
    def names(self) -> Sequence[str]:
        assert self.verdict.captured is not None
        return self.verdict.captured.names

    def graph(self, *, fused: bool) -> fx.GraphModule:
        assert self.verdict.captured is not None
        assert self.verdict.fused is not None
        return self.verdict.fused.gm if fused else self.verdict.captured.gm


class Batch(torch.nn.Module):
    """Several graphs side by side: one compile, whose results come in one tuple."""

    def __init__(self, graphs: Sequence[fx.GraphModule]) -> None:
        super().__init__()
        self.graphs = torch.nn.ModuleList(graphs)

    def forward(self, *arguments: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(graph(*given) for graph, given in zip(self.graphs, arguments, strict=True))


def through_inductor(task: Task, wanted: int, totals: Totals) -> None:
    """Compile ``wanted`` rewritten programs of this task and count what came of them."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    batch: list[Case] = []
    done, index = 0, task.start
    while done < wanted and index < task.start + max(task.graphs, 40 * wanted):
        case = _case(replace(task, dynamo=0.0, aten=0.0), index)
        index += 1
        if case is None:
            continue
        batch.append(case)
        done += 1
        if len(batch) == BATCH or done == wanted:
            _judge(batch, totals)
            batch = []
            print(f"Inductor: {done} of {wanted}, {time.perf_counter() - start:.0f} s", flush=True)


def _case(task: Task, index: int) -> Case | None:
    program, setting, verdict = one(task, index, everything())
    random = any("dropout" in s.text and "False" not in s.text for s in program.steps)  # other random numbers
    plain = (
        not program.grad and not any(o.dynamic for o in program.operands) and setting.capture not in {ATEN, INDUCTOR}
    )
    if verdict.failed or verdict.skipped or not verdict.rewritten or random or not plain:
        return None
    case = Case(index, program, setting, verdict)
    return case if len(case.graph(fused=True).graph.nodes) <= LARGEST else None


def _judge(batch: Sequence[Case], totals: Totals) -> None:
    try:
        compiled = _compiled([c.graph(fused=True) for c in batch])
        given = [operands(c.program, SEED) for c in batch]
        with torch.no_grad():
            outputs = compiled(*([tensors[n] for n in c.names] for c, tensors in zip(batch, given, strict=True)))
        results = [Ran(tuple(o), g) for o, g in zip(outputs, given, strict=True)]
    except Exception:
        for case in batch:
            _alone(case, totals)
        return
    for case, got in zip(batch, results, strict=True):
        totals.inductor["compiled"] += 1
        if _off(case, got) is not None:
            totals.inductor["compiled"] -= 1
            _alone(case, totals)


def _alone(case: Case, totals: Totals) -> None:
    """One program by itself, before and after the rewrite: whose fault is it?"""
    totals.inductor["compiled"] += 1
    after = _attempt(case, fused=True)
    if after is None:
        return
    before = _attempt(case, fused=False)
    if before is not None:
        totals.inductor["wrong or refused by Inductor without the rewrite, too"] += 1
        return
    totals.inductor["wrong after the rewrite"] += 1
    totals.wrong.append(Failing(case.index, f"through Inductor: {after}"))


def _attempt(case: Case, *, fused: bool) -> str | None:
    try:
        compiled = _compiled([case.graph(fused=fused)])
        got = run(case.program, lambda *given: compiled(list(given))[0], case.names, SEED)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return _off(case, got)


def _off(case: Case, got: Ran) -> str | None:
    """What differs from eager by more than Inductor's arithmetic does, and from float64 by more than the contract."""
    eager = case.program.function(scope())
    want = run(case.program, eager, None, SEED)
    plain = [replace_storage(r) for r in (want, got)]
    truth = exact(case.program, eager, SEED)
    if truth is not None and [t.shape for t in truth] != [t.shape for t in want.outputs]:
        truth = None
    return differs(plain[0], plain[1], ALLOWED, truth)


def replace_storage(ran: Ran) -> Ran:
    """The run without what Inductor may choose: layouts and shared memory of results."""
    return Ran(tuple(o.detach().clone(memory_format=torch.contiguous_format) for o in ran.outputs), ran.operands)


def _compiled(graphs: Sequence[fx.GraphModule]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(Batch(graphs), backend="inductor", fullgraph=True, dynamic=False)
