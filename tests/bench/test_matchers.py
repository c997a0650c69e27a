"""The comparison bench: its graphs are what it says, its judgement of a wrong rewrite can fail, and it runs."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from bench.matchers.arms.arm import Outcome, by_block, judge
from bench.matchers.arms.fx import Fx
from bench.matchers.arms.ours import Ours
from bench.matchers.captures import dynamo_graph
from bench.matchers.layers import SHAPE, DecoderLayer, Model
from bench.matchers.perturbations import CASES, OTHERS, Case
from bench.matchers.repeating import holder_of, repeated
from bench.matchers.scaling import ours
from bench.matchers.timing import OverTheCap, Times, capped, measure

NAMED = {case.name: case for case in (*CASES, *OTHERS)}


def test_every_case_has_four_blocks_and_says_which_are_sites() -> None:
    for case in NAMED.values():
        assert len(case.bodies) == len(case.rightful) == len(case.eps) == 4, case.name
    assert len(NAMED) == len(CASES) + len(OTHERS)


@pytest.mark.parametrize("name", ["commuted mul and add", "extra reader in 2 of 4 layers", "another power"])
def test_ours_finds_the_rightful_sites_and_says_why_not_the_others(name: str) -> None:
    case = NAMED[name]
    outcome = Ours("dynamo").run(case)
    assert (outcome.sites, outcome.wrong, outcome.failed) == (case.sites, 0, "")
    assert bool(outcome.said) == (case.sites < 4)


def test_fx_finds_its_own_spelling_and_no_commuted_one() -> None:
    assert Fx("dynamo").run(NAMED["eps differs from layer to layer"]).sites == 4
    assert Fx("dynamo").run(NAMED["commuted mul and add"]).sites == 0


def test_a_rewrite_that_changes_the_function_is_seen() -> None:
    outcome = Fx("dynamo").run(NAMED["x is written after the norm read it"])
    assert outcome.sites == outcome.wrong == 4


def test_the_late_cast_is_another_function_for_the_judge() -> None:
    """In bf16 the tolerance tells early from late; otherwise a wrongful match there would count as rightful."""
    late = NAMED["late cast, pattern has early (bf16)"]
    as_early = dataclasses.replace(late, bodies=NAMED["as written"].bodies)

    def results(case: Case) -> list[list[torch.Tensor]]:
        model: Any = case.model()
        return by_block(case, [t for block, x in zip(model.blocks, case.inputs(), strict=True) for t in block(x)])

    assert judge(Outcome(4), late, results(late), lambda: results(late)).wrong == 0
    assert judge(Outcome(4), late, results(late), lambda: results(as_early)).wrong == 4


def test_a_repeated_graph_is_the_graph_of_so_many_layers() -> None:
    layer = DecoderLayer().eval()
    gm = dynamo_graph(layer, [torch.randn(SHAPE)])[0]
    long = repeated(gm, 3, holder_of(gm, SHAPE))
    real = dynamo_graph(Model(3).eval(), [torch.randn(SHAPE)])[0]
    kinds = [[(n.op, n.target) for n in g.graph.nodes if n.op.startswith("call")] for g in (long, real)]
    assert kinds[0] == kinds[1]
    assert sum(isinstance(n.meta["example_value"], nn.Parameter) for n in long.graph.find_nodes(op="placeholder")) == 27
    assert ours(long) == ours(real) == 3


def test_values_of_a_repeated_graph_share_no_storage_but_with_their_views() -> None:
    gm = dynamo_graph(DecoderLayer().eval(), [torch.randn(SHAPE)])[0]
    long = repeated(gm, 2, holder_of(gm, SHAPE))

    def storages(graph: torch.fx.Graph) -> int:
        values = [n.meta.get("example_value") for n in graph.nodes]
        return len({v.untyped_storage()._cdata for v in values if isinstance(v, torch.Tensor)})

    assert storages(long.graph) == 2 * storages(gm.graph) - 1


def test_a_call_over_the_cap_is_stopped_and_not_tried_again() -> None:
    def endless() -> None:
        while True:
            pass

    with pytest.raises(OverTheCap), capped(0.05):
        endless()
    times = Times()
    measure(times, endless, cap=0.05)
    measure(times, endless, cap=60)
    assert times.over == 0.05
    assert times.wall == []
