"""Transforms of captures that hold several tensors: one source name stands for all of them."""

from __future__ import annotations

import pytest
import torch

from fxfuse import cast, stack, transpose


def test_without_several_it_is_the_transform_itself():
    transform = stack("gate", "up")
    settled, values = transform.settle({"gate": 1, "up": 2, "x": 3})
    assert settled is transform
    assert values == [1, 2]


def test_a_source_of_several_is_all_of_them_in_order():
    settled, values = stack("weights").settle({"weights": ("q", "k", "v")})
    assert settled == stack("weights[0]", "weights[1]", "weights[2]")
    assert values == ["q", "k", "v"]


def test_several_and_single_sources_keep_their_places():
    settled, values = stack("first", "weights", dim=1).settle({"first": "a", "weights": ("b", "c")})
    assert settled == stack("first", "weights[0]", "weights[1]", dim=1)
    assert values == ["a", "b", "c"]


def test_inside_another_transform():
    settled, values = cast(stack("weights"), torch.float32).settle({"weights": ("a", "b")})
    assert settled == cast(stack("weights[0]", "weights[1]"), torch.float32)
    assert values == ["a", "b"]


def test_what_it_computes_is_the_stack_of_the_elements():
    weights = tuple(torch.randn(n, 3) for n in (2, 4, 1))
    settled, values = stack("weights").settle({"weights": weights})
    assert torch.equal(settled(*values), torch.cat(weights))
    assert settled.shareable
    back = settled.inverse(settled(*values), [w.shape for w in weights])
    assert all(torch.equal(a, b) for a, b in zip(back, weights, strict=True))


@pytest.mark.parametrize("transform", [cast("weights", torch.float32), transpose("weights")])
def test_a_transform_of_one_tensor_refuses_several(transform):
    with pytest.raises(ValueError, match="takes one tensor; weights stands for 2 here"):
        transform.settle({"weights": ("a", "b")})


def test_but_takes_the_only_one_of_several():
    settled, values = transpose("weights").settle({"weights": ("a",)})
    assert settled == transpose("weights[0]")
    assert values == ["a"]
