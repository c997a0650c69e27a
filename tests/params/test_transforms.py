"""Transforms: what they compute, say, invert, refuse, and that they trace."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import fx

from fxfuse.params import Transform, cast, stack, transpose


def test_stack_concatenates_rows_of_unequal_counts() -> None:
    gate, up = torch.randn(3, 4), torch.randn(5, 4)
    both = stack("gate", "up")
    assert both.sources == ("gate", "up")
    assert both.describe() == str(both) == "stack(gate, up)"
    assert torch.equal(both(gate, up), torch.cat([gate, up]))
    assert both.shape([(3, 4), (5, 4)]) == (8, 4)
    assert both.bytes([(3, 4), (5, 4)], [torch.bfloat16] * 2) == 8 * 4 * 2
    assert both.shareable


def test_stack_inverse_splits_without_copying() -> None:
    whole = torch.randn(8, 4)
    gate, up = stack("gate", "up").inverse(whole, [(3, 4), (5, 4)])
    assert torch.equal(gate, whole[:3])
    assert torch.equal(up, whole[3:])
    assert up.data_ptr() == whole[3:].data_ptr()


@pytest.mark.parametrize(
    ("shapes", "dtypes", "message"),
    [
        (
            [(3, 4), (3, 5)],
            [torch.float32] * 2,
            r"stack\(gate, up\) needs shapes of more than 0 dimensions that differ in dimension 0 only; "
            r"found \(3, 4\), \(3, 5\) for gate, up",
        ),
        ([(3, 4), (4,)], [torch.float32] * 2, r"found \(3, 4\), \(4,\) for gate, up"),
        ([(), ()], [torch.float32] * 2, r"found \(\), \(\) for gate, up"),
        (
            [(3, 4), (3, 4)],
            [torch.float32, torch.bfloat16],
            r"needs one dtype; found torch.float32, torch.bfloat16 for gate, up",
        ),
    ],
)
def test_stack_refuses_what_does_not_fit(
    shapes: list[tuple[int, ...]], dtypes: list[torch.dtype], message: str
) -> None:
    both = stack("gate", "up")
    with pytest.raises(ValueError, match=message):
        both(*(torch.empty(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)))


def test_stack_refuses_mixed_devices_and_wrong_counts() -> None:
    both = stack("gate", "up")
    with pytest.raises(ValueError, match="one device; found cpu, meta for gate, up"):
        both(torch.empty(2, 2), torch.empty(2, 2, device="meta"))
    with pytest.raises(ValueError, match="was given 1 tensors; it takes 2, for gate, up in this order"):
        both(torch.empty(2, 2))
    with pytest.raises(ValueError, match="asked about 1 shapes and 2 dtypes"):
        both.bytes([(2, 2)], [torch.float32] * 2)
    with pytest.raises(ValueError, match=r"shape \(7, 4\); sources of shapes \(3, 4\), \(5, 4\) give \(8, 4\)"):
        both.inverse(torch.empty(7, 4), [(3, 4), (5, 4)])


def test_other_dimensions_stack_but_do_not_share() -> None:
    wide = stack("a", "b", dim=1)
    assert wide.describe() == "stack(a, b, dim=1)"
    assert wide(torch.ones(2, 1), torch.ones(2, 3)).shape == (2, 4)
    assert not wide.shareable
    assert not stack(cast("a", torch.bfloat16), "b").shareable


def test_transforms_compose_and_invert() -> None:
    a, b = torch.randn(4, 3), torch.randn(4, 5)
    both = stack(transpose("a"), transpose("b"))
    assert both.describe() == "stack(transpose(a), transpose(b))"
    whole = both(a, b)
    assert torch.equal(whole, torch.cat([a.t(), b.t()]))
    back = both.inverse(whole, [a.shape, b.shape])
    assert all(torch.equal(x, y) for x, y in zip(back, (a, b), strict=True))


def test_cast_has_no_inverse_and_says_so() -> None:
    narrow = cast("w", torch.bfloat16)
    assert narrow.describe() == "cast(w, bfloat16)"
    assert narrow(torch.ones(2)).dtype == torch.bfloat16
    assert narrow.bytes([(2, 3)], [torch.float32]) == 12
    with pytest.raises(ValueError, match=r"cast\(w, bfloat16\) has no inverse"):
        narrow.inverse(torch.ones(2, dtype=torch.bfloat16), [(2,)])


def test_a_source_used_twice_is_one_source_without_inverse() -> None:
    twice = stack("w", transpose("w"))
    assert twice.sources == ("w",)
    assert twice(torch.eye(2)).shape == (4, 2)
    with pytest.raises(ValueError, match="'w' is used more than once"):
        twice.inverse(torch.ones(4, 2), [(2, 2)])


def test_transpose_is_contiguous_and_checks_dimensions() -> None:
    flipped = transpose("w")(torch.randn(2, 3))
    assert flipped.shape == (3, 2)
    assert flipped.is_contiguous()
    with pytest.raises(ValueError, match=r"needs more than 1 dimensions; found shape \(3,\) for w"):
        transpose("w")(torch.randn(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stack(), "nothing to work on"),
        (lambda: stack("a", "a"), "names 'a' more than once"),
        (lambda: stack("a", 3), "was given 3; valid are names"),
        (lambda: stack("a", "b", dim=-1), "dim=-1; valid is a dimension counted from 0"),
        (lambda: cast("a", "bf16"), "'bf16' as dtype; valid is a torch.dtype"),
        (lambda: transpose("a", 1, 1), r"dimensions \(1, 1\); valid are two different ones"),
    ],
)
def test_definitions_are_checked_where_they_are_made(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_transforms_are_values() -> None:
    assert stack("a", "b") == stack("a", "b")
    assert len({stack("a", "b"), stack("a", "b"), stack("b", "a"), stack("a", "b", dim=1)}) == 3
    assert pickle.loads(pickle.dumps(stack("a", cast("b", torch.half)))) == stack("a", cast("b", torch.half))
    with pytest.raises(AttributeError):
        stack("a", "b").dim = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "transform", [stack("a", "b"), stack(cast("a", torch.double), cast(transpose("b"), torch.double))]
)
def test_transforms_trace_with_fx(transform: Transform) -> None:
    class Root(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return transform(a, b)

    a, b = torch.randn(3, 3), torch.randn(3, 3)
    assert torch.equal(fx.symbolic_trace(Root())(a, b), transform(a, b))
