"""`extra_memory` is a hard limit, over all copies of a parameter and all graphs that ask for one."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxfuse
from fxfuse.params import Budget, Derived, DerivedInputs, Transform, cast, chunk, copies, stack, transpose

GATE_UP = stack("gate", "up")


@pytest.fixture
def pair() -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(24, 16)) for _ in range(2)]


def inputs(transform: Transform, granted: float, notes: list[str]) -> DerivedInputs:
    places = tuple(range(len(transform.sources)))
    return DerivedInputs([Derived(transform, places, "copy")], notes.append, extra_memory=granted)


@torch.no_grad()
def call(derived: DerivedInputs, args: Sequence[Tensor]) -> Tensor:
    return derived(args)[0]


@pytest.mark.parametrize(
    ("transform", "ratio"),
    [(GATE_UP, 1.0), (cast("w", torch.float64), 2.0), (cast("w", torch.bfloat16), 0.5), (chunk("w", 0), 0.5)],
    ids=str,
)
def test_exactly_what_was_granted_is_enough_and_less_is_not(
    transform: Transform, ratio: float, pair: list[nn.Parameter]
) -> None:
    sources = pair[: len(transform.sources)]
    own = sum(s.nbytes for s in sources)
    assert Budget(ratio, []).refusal([(transform, sources)]) is None
    refusal = Budget(ratio - 0.01, []).refusal([(transform, sources)])
    assert refusal is not None
    assert f"wants {int(ratio * own)} bytes, and extra_memory={ratio - 0.01:g} grants" in refusal


def test_two_copies_of_one_parameter_add_up(pair: list[nn.Parameter]) -> None:
    budget = Budget(1.0, [])
    assert budget.refusal([(GATE_UP, pair)]) is None
    budget.plan([(GATE_UP, pair)])
    assert budget.refusal([(GATE_UP, pair)]) is None, "the same copy, asked for by another site"
    refusal = budget.refusal([(transpose("gate"), pair[:1])])
    assert refusal is not None
    assert "beside other copies of the same parameters" in refusal
    other = [nn.Parameter(torch.randn(24, 16))]
    assert budget.refusal([(transpose("gate"), other)]) is None


def test_one_kernel_that_wants_two_copies_of_a_parameter(pair: list[nn.Parameter]) -> None:
    both = [(GATE_UP, pair), (transpose("gate"), pair[:1])]
    assert Budget(1.0, []).refusal(both) is not None
    assert Budget(2.0, []).refusal(both) is None


def test_a_transform_that_does_not_fit_is_a_refusal(pair: list[nn.Parameter]) -> None:
    refusal = Budget(9.0, []).refusal([(GATE_UP, [pair[0], nn.Parameter(torch.randn(24, 15))])])
    assert refusal is not None
    assert "differ in dimension 0 only" in refusal


def test_a_second_graph_does_without_and_is_right(pair: list[nn.Parameter]) -> None:
    notes: list[str] = []
    first, second = inputs(GATE_UP, 1.0, notes), inputs(transpose("gate"), 1.0, notes)
    kept = call(first, pair)
    for _ in range(5):
        assert torch.equal(call(second, pair), pair[0].t())
        pair[0].data.mul_(2)
    assert torch.equal(call(first, pair), torch.cat(pair))
    assert len(notes) == 1
    assert "is computed anew on each call: a copy, transpose(gate), wants 1536 bytes beside other copies" in notes[0]
    held = [copy for copy in copies() if any(ref() is pair[0] for ref in copy.refs)]
    assert sum(copy.bytes for copy in held) == kept.nbytes
    del first, kept, held
    gc.collect()
    for _ in range(4):
        call(second, pair)
    assert any(any(ref() is pair[0] for ref in copy.refs) for copy in copies()), "room was made, and taken"


@pytest.mark.parametrize(
    "sources",
    [
        lambda: [p := nn.Parameter(torch.randn(24, 16)), p],
        lambda: [p := nn.Parameter(torch.randn(24, 16)), nn.Parameter(p.data)],
        lambda: [nn.Parameter(torch.randn(1, 16).expand(24, 16)) for _ in range(2)],
    ],
    ids=["tied", "tied by storage", "expanded"],
)
def test_parameters_that_take_less_memory_than_their_sizes_say_grant_less(sources: Any) -> None:
    tensors = sources()
    refusal = Budget(1.0, []).refusal([(GATE_UP, tensors)])
    assert refusal is not None
    assert "wants 3072 bytes" in refusal


def test_rebuilding_a_copy_asks_for_nothing_more(pair: list[nn.Parameter]) -> None:
    notes: list[str] = []
    derived = inputs(GATE_UP, 1.0, notes)
    for _ in range(5):
        assert torch.equal(call(derived, pair), torch.cat(pair))
        pair[1].data.add_(1)
    assert notes == []


class Mlp(nn.Module):
    """A norm and a gated MLP whose weights fill oneDNN's blocks."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(64, dtype=dtype) + 0.5)
        self.gate = nn.Linear(64, 128, bias=False, dtype=dtype)
        self.up = nn.Linear(64, 128, bias=False, dtype=dtype)
        self.down = nn.Linear(128, 64, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        h = self.scale * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
        return self.down(nn.functional.silu(self.gate(h)) * self.up(h))


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend=fxfuse.Backend(inner="eager", on_error="raise", **options), dynamic=False)


@pytest.mark.parametrize("granted", [0.0, 0.99, 1.0, 7.0])
@torch.no_grad()
def test_a_site_says_which_bytes_it_wanted_and_does_without(granted: float) -> None:
    model, x = Mlp(), torch.randn(16, 64)
    torch.testing.assert_close(compiled(model, extra_memory=granted)(x), model(x))
    (site,) = fxfuse.reports()[-1].sites
    wanted = 3 * 64 * 128 * 4
    held = [c for c in copies() if any(ref() is p for ref in c.refs for p in model.parameters())]
    assert sum(copy.bytes for copy in held) == site.extra_bytes <= granted * wanted
    if granted >= 1:
        assert (site.kernel, site.weights, site.extra_bytes, site.notes) == ("cpu_kept_panels", "copy", wanted, ())
    else:
        assert (site.kernel, site.weights, site.extra_bytes) == ("plain", "separate", 0)
        assert [f"wants {2 * 64 * 128 * 4} bytes" in n or f"wants {wanted} bytes" in n for n in site.notes] == (
            [True] if granted else []
        )


@torch.no_grad()
def test_a_kernel_named_without_the_memory_it_needs_raises() -> None:
    model, x = Mlp(), torch.randn(16, 64)
    named = {"rms_norm_gated_mlp": "cpu_packed"}
    with pytest.raises(Exception, match=r"derives a weight, and a copy, pack.* wants \d+ bytes, .*_memory=0"):
        compiled(model, kernels=named)(x)
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"derives a weight, and .* is not computed anew on each call"):
        compiled(model, kernels=named, weights="inline", extra_memory=1.0)(x)
