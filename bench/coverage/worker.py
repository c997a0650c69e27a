"""One architecture: built, recorded for the oracle, compiled by every arm, compared with eager and float64."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fxfuse
from bench.coverage import arms, numbers, oracle, tiny
from bench.coverage.architectures import Architecture
from fxfuse.library import names as pattern_names
from fxfuse.numerics.contract import worst

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SEEDS = 5

Result = dict[str, Tensor]


def examine(
    architecture: Architecture,
    *,
    dtypes: Sequence[str] = tuple(DTYPES),
    modes: Sequence[str] = ("forward", "backward"),
    patterns: Sequence[str] | None = None,
    together: Sequence[str] = (arms.ALL, arms.DEFAULT),
    seeds: int = SEEDS,
    **changes: Any,
) -> dict[str, Any]:
    """The record of one architecture; whatever fails is in it, with the stage at which it did.

    Args:
        patterns: each alone; every pattern of the library by default.
        modes: ``forward``, ``backward``, or ``outliers``: forward, with a few channels a hundred times as large.
        together: what is compiled besides, see :func:`bench.coverage.arms.arms_of`.
        seeds: how many inputs are compared.
        changes: fields of the tiny config.
    """
    record: dict[str, Any] = {
        "name": architecture.name, "class": architecture.class_name, "kind": architecture.kind,
        "family": architecture.family, "status": "ok", "runs": {},
    }  # fmt: skip
    options = arms.arms_of(list(patterns or pattern_names()), together)
    start = time.perf_counter()
    for dtype in dtypes:
        for mode in modes:
            try:
                run = _run(architecture, DTYPES[dtype], mode, options, seeds, changes)
            except Stage as stage:
                run = {"status": stage.status, "error": stage.error}
            record["runs"][f"{dtype} {mode}"] = run
    record["status"] = worst_status([run["status"] for run in record["runs"].values()])
    record["seconds"] = round(time.perf_counter() - start, 1)
    return record


STATUSES = ("ok", "not trainable", "eager fails", "no config", "stock torch.compile fails", "not finished",
            "rewrite error", "crash", "wrong")  # fmt: skip
"""From best to worst."""


def worst_status(statuses: Sequence[str]) -> str:
    return max(statuses, key=STATUSES.index) if "ok" not in statuses else max(
        (s for s in statuses if s != "not trainable"), key=STATUSES.index
    )  # fmt: skip


class Stage(Exception):
    """A run ended early."""

    def __init__(self, status: str, error: BaseException) -> None:
        super().__init__(status)
        self.status = status
        self.error = arms.failure(error)


def _run(
    architecture: Architecture,
    dtype: torch.dtype,
    mode: str,
    options: Mapping[str, Any],
    seeds: int,
    changes: dict[str, Any],
) -> dict[str, Any]:
    torch._dynamo.reset()
    train = mode == "backward"
    try:
        model = tiny.model_of(architecture, dtype, **changes).train(train)
        if mode == "outliers":
            tiny.enlarge(model)
    except Exception as error:
        raise Stage("no config", error) from error

    def call(m: Any, seed: int, of: nn.Module = model) -> Result:
        return _call(m, of, architecture, seed, train)

    return run_model(model, call, options, seeds=seeds, train=train)


Call = Callable[..., Result]


def run_model(
    model: nn.Module, call: Call, options: Mapping[str, Mapping[str, Any]], *, seeds: int = SEEDS, train: bool = False
) -> dict[str, Any]:
    """The record of one model.

    Args:
        call: ``call(model, seed, of)`` gives the results of ``model``, which is ``of`` or what was compiled of it.
        options: each arm's, of :func:`bench.coverage.arms.arms_of`.

    Raises:
        Stage: eager or stock torch.compile fails, so that there is nothing to compare.
    """
    try:
        eager = [call(model, seed) for seed in range(seeds)]
    except Exception as error:
        raise Stage("not trainable" if train else "eager fails", error) from error
    present = oracle.present(oracle.record(model, lambda: call(model, 0)))
    exact, why_not_exact = _exact(model, call, eager)

    backend = arms.Arms(options)
    fast = torch.compile(model, backend=backend)
    try:
        stock = [call(fast, seed) for seed in range(seeds)]
    except Exception as error:
        raise Stage("stock torch.compile fails", error) from error

    run: dict[str, Any] = {
        "status": "ok", "seeds": seeds, "graphs": backend.graphs, "nodes": backend.nodes, "present": present,
        "arms": {}, "stock": _part(stock, eager, exact),
    }  # fmt: skip
    if why_not_exact:
        run["compared with eager only"] = why_not_exact
    base = stock if run["stock"] > 1 else None  # what breaks the contract without fxfuse is not its doing
    for name in options:
        run["arms"][name] = _arm(name, backend, lambda seed: call(fast, seed), eager, exact, base)
    run["status"] = worst_status([a["status"] for a in run["arms"].values()])
    return run


def _exact(model: nn.Module, call: Callable[..., Result], eager: list[Result]) -> tuple[list[Result], str]:
    """The results in float64; eager's own, and why, where the model does not run so."""
    try:
        wide = numbers.widened(model)
        exact = [numbers.exactly(wide, lambda m, s=seed: call(m, s, m)) for seed in range(len(eager))]
        if any(e[k].shape != x[k].shape for e, x in zip(eager, exact, strict=True) for k in e.keys() & x.keys()):
            return eager, "float64 gives other shapes"
        return exact, ""
    except Exception as error:
        return eager, arms.failure(error)


def _arm(
    name: str,
    backend: arms.Arms,
    call: Callable[[int], Result],
    eager: list[Result],
    exact: list[Result],
    base: list[Result] | None,
) -> dict[str, Any]:
    graphs = backend.graphs
    backend.chosen = name
    backend.calls = [0] * graphs
    record: dict[str, Any] = {"status": "ok"}
    sites: list[tuple[fxfuse.Site, int]] = []
    try:
        first = call(0)
        sites = list(backend.sites(name))
        found = [first, *(call(seed) for seed in range(1, len(eager)))]
        record["part"] = _part(found if base is None else _apart(found, base, eager), eager, exact)
        if record["part"] > 1:
            record["status"] = "wrong"
    except Exception as error:
        record.update(status="crash", error=arms.failure(error))
    finally:
        backend.chosen = arms.ORIGINAL
    if name in backend.failures:
        record.update(status="crash", error=backend.failures[name])
    if record["status"] == "ok" and any(s.code == "REWRITE_ERROR" for s, _ in sites):
        record["status"] = "rewrite error"
    for outcome in ("rewritten", "kept"):
        record[outcome] = _counted((s.pattern, n) for s, n in sites if s.outcome == outcome)
    record["variants"] = _counted(
        (f"{s.pattern} " + " ".join(f"{k}={v}" for k, v in s.variant.items()), n)
        for s, n in sites
        if s.outcome == "rewritten"
    )
    record["rest"] = _rows(sites)
    if backend.graphs > graphs:
        record["recompiled"] = backend.graphs - graphs
    return record


def _part(found: list[Result], eager: list[Result], exact: list[Result]) -> float:
    """The part of what the contract allows that is used up, the worst over the seeds; above 1 it is broken."""
    every = []
    for f, e, x in zip(found, eager, exact, strict=True):
        names = [n for n in x if n in e and bool(x[n].any())]
        missing = [n for n in names if n not in f]
        if missing:
            raise AssertionError(f"{missing[0]} and {len(missing) - 1} more have no gradient")
        every.append(numbers.compare([f[n] for n in names], [e[n] for n in names], [x[n] for n in names]))
    return round(worst(every).ratio, 3)


def _apart(found: list[Result], base: list[Result], eager: list[Result]) -> list[Result]:
    """Eager's results with what the arm changes of the captured graph's."""
    return [
        {n: e[n].double() + f[n].double() - b[n].double() for n in f.keys() & b.keys() & e.keys()}
        for f, b, e in zip(found, base, eager, strict=True)
    ]


def _rows(sites: Sequence[tuple[fxfuse.Site, int]]) -> list[dict[str, Any]]:
    """Sites that were not rewritten, equal ones as one row."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for s, times in sites:
        if s.outcome == "rewritten" or not times:
            continue
        key = (s.pattern, s.outcome, s.code, re.sub(r"\([\w.]+\)|_?\d+", "", s.reason))
        row = rows.setdefault(key, {
            "pattern": s.pattern, "outcome": s.outcome, "code": s.code, "reason": s.reason, "sites": 0,
            "modules": list(s.modules), "matched": f"{s.matched_nodes} of {s.pattern_nodes}",
            "line": (s.detail.graph_line if s.detail else ""), "text": (s.detail.graph_text if s.detail else ""),
        })  # fmt: skip
        row["sites"] += times
    return list(rows.values())


def _counted(names: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, times in names:
        found[name] = found.get(name, 0) + times
    return {name: times for name, times in found.items() if times}


def _call(m: Any, model: nn.Module, architecture: Architecture, seed: int, train: bool) -> Result:
    """Logits, or the loss and every gradient."""
    given = tiny.inputs_of(model, architecture, seed, train)
    if not train:
        with torch.no_grad():
            torch.manual_seed(seed)
            return {"logits": _logits(m(**given))}
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    out = m(**given)
    loss = getattr(out, "loss", None)
    loss = loss if loss is not None else _logits(out).float().square().mean()
    loss.backward()
    return {"loss": loss.detach(), **numbers.gradients(model)}


def _logits(out: Any) -> Tensor:
    logits = getattr(out, "logits", None)
    return logits if isinstance(logits, Tensor) else next(v for v in out.values() if isinstance(v, Tensor))
