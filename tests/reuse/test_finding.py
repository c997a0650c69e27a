"""Which stretches are found, where their borders lie, and what is said where there are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reuse.stacks import Block, Stack, compiled, copies, last, rms, rows
from support import capture
from torch import Tensor, nn

import fxfuse
from fxfuse.reuse.plan import plan
from fxfuse.reuse.repeats import Run, runs


@pytest.mark.parametrize("layers", [5, 9])
def test_equal_layers_are_one_region(layers: int) -> None:
    gm, examples = capture(Stack(layers).eval().requires_grad_(False), rows())
    made = plan(gm, examples)
    assert [kind.copies for kind in made.kinds] == [1, layers]
    assert [number for _, number in made.calls] == [0] + [1] * layers


def test_the_residual_sum_stays_with_the_norm_behind_it() -> None:
    gm, examples = capture(Stack(5).eval().requires_grad_(False), rows())
    region = plan(gm, examples).kinds[1]
    names = [str(getattr(n.target, "__name__", n.target)) for n in region.first.nodes]
    assert names[0] == "linear"
    assert names[names.index("rsqrt", names.index("silu")) - 5 : -1].count("add") == 2  # the sum, and the norm's eps
    assert len(region.gives) == 2  # the sum and its norm


def test_nothing_to_reuse_is_compiled_as_it_was() -> None:
    compiled(Stack(2))(rows())
    assert last().as_asked
    assert "too few" in last().reason
    assert "reuse" not in str(fxfuse.reports()[-1])


def scaled(block: Block, x: Tensor) -> Tensor:
    return x * (1.0 / (1 + block.number))


def by_type(block: Block, x: Tensor) -> Tensor:
    return x * (1 if block.number % 2 else 1.0)


def test_a_constant_of_the_layer_is_no_reason_to_guess() -> None:
    model = Stack(6, scaled)
    torch.testing.assert_close(compiled(model)(rows()), model(rows()))
    assert not last().repeated
    assert "layers.0 and layers.1 differ: " in last().reason
    assert "0.5" in last().reason


def test_an_int_is_not_the_float_that_it_equals() -> None:
    model = Stack(8, by_type).requires_grad_(False)
    torch.testing.assert_close(compiled(model)(rows()), model(rows()))
    assert copies() == [4]  # two layers, an odd one and an even one


class Mixed(nn.Module):
    """Blocks of two kinds, in any order."""

    def __init__(self, kinds: str) -> None:
        super().__init__()
        twists: dict[str, Any] = {"a": None, "b": lambda _, x: torch.tanh(x), "c": lambda _, x: x.flip(1)}
        self.layers = nn.ModuleList(Block(i, twists[kind]) for i, kind in enumerate(kinds))
        self.last = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return rms(x, self.last)


@pytest.mark.parametrize(
    ("kinds", "compiled_layers"),
    [("aaaaaa", 1), ("caaaaa", 2), ("abababab", 2), ("aaabaaabaaab", 3), ("aaaaabaaaaab", 3), ("abbbbbbb", 2)],
)
def test_layers_that_differ_are_regions_of_their_own(kinds: str, compiled_layers: int) -> None:
    model = Mixed(kinds).requires_grad_(False)
    gm, examples = capture(model, rows())
    made = plan(gm, examples)
    assert made.divided, made.reason
    layer = len(capture(Mixed("a").requires_grad_(False), rows())[0].graph.nodes) - 10
    own = sum(len(kind.first.nodes) for kind in made.kinds)
    assert own < (compiled_layers + 1.6) * layer
    torch._dynamo.reset()
    torch.testing.assert_close(compiled(model)(rows()), model(rows()))


def test_functions_without_modules_are_found_too() -> None:
    weights = [torch.randn(16, 16) for _ in range(8)]

    def forward(x: Tensor) -> Tensor:
        for weight in weights:
            for _ in range(4):
                x = x + torch.tanh(rms(x, weight[0]) @ weight)
        return x

    torch.testing.assert_close(compiled(forward)(rows()), forward(rows()))
    assert sum(copies()) >= 8


def test_runs_of_a_sequence() -> None:
    assert Run(1, 13, 3) in runs([9, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 8], 0, 14, 2)
    assert Run(1, 13, 6) in runs([9, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 8], 0, 14, 5)
    assert runs(list(range(20)), 0, 20, 1) == []


def test_off_and_unknown_values() -> None:
    compiled(Stack(6), reuse="off")(rows())
    assert last().reason == "reuse='off'"
    with pytest.raises(ValueError, match=r"auto.*off"):
        fxfuse.Backend(reuse="always")


def test_explain_shows_the_borders() -> None:
    report = fxfuse.explain(Stack(6).requires_grad_(False), (rows(),))
    (record,) = report.reuse
    assert [region.copies for region in record.regions] == [1, 6]
    assert record.saved_seconds is None
    text = str(report)
    assert "1 region compiled once, called 6 times; seconds saved: not measured" in text
    assert "layers.0.q to layers.1" in text
    again = fxfuse.Report.from_json(report.to_json())
    assert tuple(again.reuse) == tuple(report.reuse)


def test_a_compile_says_what_it_saved() -> None:
    compiled(Stack(6))(rows())
    assert last().saved_seconds > 0
    assert "s of compiling saved" in str(fxfuse.reports()[-1])
