"""Ways, sizes and example tensors: each way once, distinct sizes that satisfy the relations, the dtypes asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fxfuse import Dim, Input, Param, Scalar, many, one_of, pattern
from fxfuse.checking import CheckError, examples
from fxfuse.checking.covering import covering
from fxfuse.checking.examples import example
from fxfuse.checking.running import same_bits
from fxfuse.checking.sizing import size_for
from fxfuse.checking.ways import Way, ways

D, N = Dim("hidden"), Dim("intermediate")


@pattern("nested")
def nested(
    x: Any = Input(..., D), w: Any = Param(N, D), b: Any = Param(N, optional=True), s: Any = Scalar(float)
) -> Any:
    h = F.linear(x, w, b)
    return one_of("act", silu=lambda: F.silu(h), scaled=lambda: one_of("by", s=lambda: h * s, two=lambda: h * 2))


@pattern("relations")
def relations(x: Any = Input(..., D), w: Any = Param(2 * N, D), v: Any = Param(N + 1, dtype=(torch.bfloat16,))) -> Any:
    a, b = F.linear(x, w).chunk(2, -1)
    return F.silu(a) * b, torch.tanh(x.mean() * v)


@pattern("several")
def several(x: Any = Input(..., D), weights: Any = Param(N, D, many=True)) -> Any:
    return many(lambda w: F.linear(x, w), weights)


def test_each_way_once_with_what_it_depends_on() -> None:
    found = {(*way.variant.items(), *sorted(way.given)): way for way in ways(nested)}
    assert len(found) == len(ways(nested)) == 6
    silu = found[("act", "silu"),]
    assert silu.tensors == ("x", "w")
    assert silu.scalars == ()  # no scalar on this way
    assert found[(("act", "scaled"), ("by", "s"), "b")].scalars == ("s",)


def test_sizes_are_distinct_and_satisfy_relations() -> None:
    (way,) = ways(relations)
    sizing = size_for(way)
    d, n = sizing.dims[D], sizing.dims[N]
    assert d != n
    made = example(way, torch.bfloat16).tensors()
    assert made["w"].shape == (2 * n, d)
    assert made["v"].shape == (n + 1,)


def test_sizes_that_only_the_reference_knows_to_be_related() -> None:
    apart = Dim("apart")

    @pattern("related")
    def related(x: Any = Input(..., D), w: Any = Param(apart, D), v: Any = Param(N)) -> Any:
        return F.silu(F.linear(x, w)) * torch.cat([v, v])

    (way,) = ways(related)
    dims = size_for(way).dims
    assert dims[apart] == 2 * dims[N]


def test_dtype_sets_and_siblings() -> None:
    (way,) = ways(relations)
    assert example(way, torch.float32).tensors()["v"].dtype is torch.bfloat16
    assert [way.siblings for way in ways(several)] == [2, 3]
    assert set(example(ways(several)[1], torch.float32).tensors()) == {"x", "weights_0", "weights_1", "weights_2"}
    assert isinstance(example(ways(several)[0], torch.float32).values["weights"], tuple)


def test_examples_are_every_way_dtype_and_kind_of_sizes() -> None:
    found = list(examples(nested))
    assert len(found) == 6 * 3 * 2
    assert {e.dtype for e in found} == {torch.float32, torch.bfloat16, torch.float16}
    assert {e.symbolic for e in found} == {False, True}


def test_a_drawn_graph_is_what_dynamo_captures() -> None:
    """The same operations on the same operands, with the same results."""
    for way in ways(nested):
        one = example(way, torch.bfloat16)
        drawn, captured = one.draw(), one.capture()

        def calls(gm: torch.fx.GraphModule) -> list[Any]:
            return [getattr(n.target, "__name__", n.target) for n in gm.graph.nodes if n.op.startswith("call_")]

        assert calls(drawn.gm) == calls(captured.gm)
        tensors = one.tensors(7)
        with torch.no_grad():
            assert same_bits(drawn.gm(*drawn.arguments(tensors)), captured.gm(*captured.arguments(tensors)))


def test_symbolic_examples_have_symbols_and_run_at_other_sizes() -> None:
    one = next(e for e in examples(nested) if e.symbolic)
    captured = one.capture()
    shapes = [n.meta["example_value"].shape for n in captured.gm.graph.find_nodes(op="placeholder") if n.name == "l_x_"]
    assert any(isinstance(size, torch.SymInt) for size in shapes[0])
    tensors = one.tensors()
    tensors["x"] = torch.randn(5, 4, tensors["x"].shape[-1]).to(one.dtype)
    arguments = captured.resized(tensors)
    assert arguments is not None
    assert captured.gm(*arguments)[0].shape[:2] == (5, 4)
    tensors["x"] = torch.randn(5, 4, 3).to(one.dtype)
    assert captured.resized(tensors) is None  # that size is the weight's


def test_the_same_seed_gives_the_same_tensors() -> None:
    one = example(ways(nested)[0], torch.float32)
    assert same_bits(list(one.tensors(3).values()), list(one.tensors(3).values()))
    assert not same_bits(list(one.tensors(3).values()), list(one.tensors(4).values()))
    assert one.tensors(3, outliers=True)["x"].abs().max() > 30


def test_no_sizes_is_an_error_that_says_so() -> None:
    @pattern("impossible")
    def impossible(x: Any = Input(..., D), v: Any = Param(3, N)) -> Any:
        return F.silu(x) @ v @ v

    with pytest.raises(CheckError, match=r"no sizes were found .* raises RuntimeError.* Relate sizes"):
        size_for(ways(impossible)[0])


def test_a_covering_has_every_pair() -> None:
    every = ways(nested)
    pairs = covering(every, 2)
    assert len(covering(every, 1)) < len(pairs) <= len(every)

    def features(way: Way) -> set[str]:
        return {*(f"{k}={v}" for k, v in way.variant.items()), *(f"{n}:{n in way.given}" for n in ("b",))}

    def all_pairs(some: list[Way]) -> set[Any]:
        return {(a, b) for way in some for a in features(way) for b in features(way)}

    assert all_pairs(pairs) == all_pairs(every)
