"""`conversion_mapping` read as transforms: what transformers would load, computed from the parameters themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fxfuse import PatternError, stack, transpose
from fxfuse.adapters.conversion import converted

pytest.importorskip("transformers", minversion="5.13")

from transformers import Concatenate, WeightConverter
from transformers.conversion_mapping import WeightRenaming
from transformers.core_model_loading import Transpose

SOURCES = {"m.a.weight": (3, 4), "m.b.weight": (5, 4), "m.c.bias": (3,)}


def made(*mapping: Any, **targets: tuple[int, ...]) -> Any:
    return converted(mapping, SOURCES, {f"m.{k.replace('_', '.')}": v for k, v in targets.items()}, "Layout")


def both(*operations: Any, order: tuple[str, str] = ("a.weight", "b.weight")) -> WeightConverter:
    return WeightConverter(list(order), "ab.weight", operations=list(operations))


def test_renaming_concatenating_and_transposing() -> None:
    found = made(WeightRenaming("c.bias", "d.shift"), both(Concatenate(dim=0)), ab_weight=(8, 4), d_shift=(3,))
    assert found == {"m.ab.weight": stack("m.a.weight", "m.b.weight"), "m.d.shift": "m.c.bias"}
    found = made(both(Concatenate(dim=-2), Transpose(0, -1)), ab_weight=(4, 8), c_bias=(3,))
    assert found["m.ab.weight"] == transpose(stack("m.a.weight", "m.b.weight"))
    tensors = torch.randn(3, 4), torch.randn(5, 4)
    assert torch.equal(found["m.ab.weight"](*tensors), torch.cat(tensors).t())


def test_the_order_is_the_mapping_s_and_not_the_model_s() -> None:
    found = made(both(Concatenate(dim=0), order=("b.weight", "a.weight")), ab_weight=(8, 4), c_bias=(3,))
    assert found["m.ab.weight"] == stack("m.b.weight", "m.a.weight")


def test_what_is_not_named_keeps_its_name() -> None:
    assert made(a_weight=(3, 4), b_weight=(5, 4), c_bias=(3,)) == {name: name for name in SOURCES}


def test_a_group_in_a_pattern_is_filled_in() -> None:
    found = made(WeightRenaming(r"m.(a|b).weight", r"m.\1.scale"), a_scale=(3, 4), b_scale=(5, 4), c_bias=(3,))
    assert found["m.b.scale"] == "m.b.weight"


def test_the_mapping_is_left_as_it_was() -> None:
    one = WeightRenaming("c.bias", "d.shift")
    made(one, both(Concatenate(dim=0)), ab_weight=(8, 4), d_shift=(3,))
    assert not one.was_used()


@pytest.mark.parametrize(
    ("mapping", "targets", "said"),
    [
        (
            [WeightRenaming("m.(a|b).weight", "m.ab.weight")],
            {"ab_weight": (3, 4), "c_bias": (3,)},
            "are all renamed to",
        ),
        ([both(Concatenate(dim=0))], {"ab_weight": (8, 4)}, "makes m.c.bias of m.c.bias, and the layout has no such"),
        ([both(Concatenate(dim=0))], {"ab_weight": (8, 4), "c_bias": (3,), "d_x": (1,)}, "has the parameter m.d.x, wh"),
        ([both(Concatenate(dim=0))], {"ab_weight": (9, 4), "c_bias": (3,)}, r"of shape \(8, 4\); the layout declares"),
        ([both(Concatenate(dim=1))], {"ab_weight": (3, 8), "c_bias": (3,)}, "m.ab.weight cannot be made: stack"),
        ([both(Transpose(0, 1))], {"ab_weight": (4, 8), "c_bias": (3,)}, "which fxfuse has no transform for"),
        (
            [both(Concatenate(dim=0, num_shards_attribute="heads"))],
            {"ab_weight": (8, 4), "c_bias": (3,)},
            "which fxfuse has no transform for",
        ),
        (
            [both(Concatenate(dim=0), order=("a.weight", "z.weight"))],
            {"ab_weight": (3, 4), "b_weight": (5, 4), "c_bias": (3,)},
            "'z.weight' names none of the modules' parameters m.a.weight, m.b.weight, m.c.bias",
        ),
    ],
)
def test_what_cannot_be_made_raises(mapping: Any, targets: dict[str, tuple[int, ...]], said: str) -> None:
    with pytest.raises(PatternError, match=said):
        made(*mapping, **targets)
