"""Mutants: programs of every kind of edit, counted only where they are other functions or break a gate."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fxfuse import Dim, Input, Param, Scalar, keep, pattern
from fxfuse.authoring import Pattern
from fxfuse.checking.examples import Captured, Example, example
from fxfuse.checking.judging import look, same_function
from fxfuse.checking.mutate import Edit, Gate, edits
from fxfuse.checking.refusals import Refusals, refusals
from fxfuse.checking.sizing import SQUARE, size_for
from fxfuse.checking.sketch import Sketch
from fxfuse.checking.ways import ways
from fxfuse.safeguards import lifted

D, N = Dim("hidden"), Dim("intermediate")


@pattern("gated")
def gated(x: Any = Input(..., D), gate: Any = Param(N, D), up: Any = Param(N, D), eps: Any = Scalar(float)) -> Any:
    h = x.float()
    h = (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
    return F.gelu(F.linear(h, gate), approximate="tanh") * F.linear(h, up)


@pattern("kept")
def kept(x: Any = Input(..., D), gate: Any = Param(N, D)) -> Any:
    return torch.tanh(F.linear(keep(F.silu(x)), gate))


def drawn(of: Pattern) -> tuple[Example, Captured]:
    (way,) = ways(of)
    one = example(way, torch.bfloat16, sizing=size_for(way, prefer=SQUARE))
    return one, one.draw()


@pytest.fixture(scope="module")
def all_refusals() -> Refusals:
    return refusals(*drawn(gated), 0)


def test_every_mutant_of_every_kind_is_refused(all_refusals: Refusals) -> None:
    assert [f.what for f in all_refusals.failures] == []
    assert set(all_refusals.refused) == {"op", "literal", "operand", "cast", "reader", "write", "parameter"}
    assert all_refusals.tried > 120
    assert {"OP", "LITERAL", "EXTERNAL_USE", "GRAPH_OUTPUT", "MUTATION", "NOT_A_PARAM", "SHAPE"} <= set(
        all_refusals.codes
    )


def test_what_computes_the_same_is_no_mutant() -> None:
    """Commuted operands, another eps, gate for up in both places: found, and rightly."""
    one, captured = drawn(gated)
    proposed = list(edits(captured.gm.graph, frozenset(), random.Random(0)))
    assert [e for e in proposed if e.what.startswith("operands of mul")]
    assert [e for e in proposed if e.what.startswith("1.125 for 0.0625")]
    found = refusals(one, captured, 0)
    assert found.refused["operand"] < sum(e.kind == "operand" for e in proposed)
    assert not found.failures


def edit_named(captured: Captured, what: str, parameters: frozenset[str] = frozenset()) -> Edit:
    for seed in range(20):
        for edit in edits(captured.gm.graph, parameters, random.Random(seed)):
            if edit.what == what:
                return edit
    raise AssertionError(what)


@pytest.mark.parametrize(
    "what",
    [
        "rsqrt negated",
        "1.5 times linear",
        "none for tanh in gelu",
        "parameter_gate transposed in linear",
        "mean written at once",
    ],
)
def test_an_edit_is_another_program(what: str) -> None:
    one, captured = drawn(gated)
    edit = edit_named(captured, what)
    sketch = Sketch(captured.gm)
    edit.apply(sketch, sketch.mapping[edit.node])
    mutant = sketch.module()
    sketch.refresh()
    assert same_function(mutant, captured.gm, [captured.arguments(one.tensors(1))]) is not None
    assert not look(mutant, captured.live, gated).matches


def test_a_kept_value_may_be_read() -> None:
    one, captured = drawn(kept)
    found = refusals(one, captured, 0)
    assert not found.failures
    assert found.refused["reader"] == 2  # of the projection; the activation is kept


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gate.external_use", "reader"),
        ("gate.graph_output", "reader"),
        ("gate.mutation", "write"),
        ("match.literal", "literal"),
        ("match.dtype", "cast"),
        ("match.size", "size 1 for"),
    ],
)
def test_without_a_condition_its_mutants_are_found(name: str, kind: str) -> None:
    with lifted(name):
        assert [f.what for f in refusals(*drawn(gated), 0).failures if kind in f.what]


def test_a_written_parameter_is_a_broken_gate() -> None:
    _, captured = drawn(gated)
    edit = edit_named(captured, "parameter_up written at once", frozenset({"parameter_up"}))
    assert edit.gate is Gate.NO_PARAMETER
