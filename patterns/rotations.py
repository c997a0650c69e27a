"""Spellings of rotary position embedding, for use inside patterns.

A rotation turns pairs of entries by an angle (Su et al., arXiv 2104.09864): ``y = x * cos + turned(x) * sin``, where
the pair (a, b) is turned into (-b, a). Turned the other way it is another function, and no match.
"""

from __future__ import annotations

from typing import Any

import torch

from fxfuse import one_of


def halves(x: Any) -> Any:
    first, second = x.chunk(2, -1)
    return first, second


def halves_joined(a: Any, b: Any) -> Any:
    return torch.cat((a, b), -1)


def neighbours(x: Any) -> Any:
    return x[..., ::2], x[..., 1::2]


def neighbours_joined(a: Any, b: Any) -> Any:
    return torch.stack((a, b), -1).flatten(-2)


def half_turned(x: Any) -> Any:
    """Pairs are an entry of the first half and one of the second (Llama, GPT-NeoX)."""
    first, second = halves(x)
    return halves_joined(-second, first)


def adjacent_turned(x: Any) -> Any:
    """Pairs are neighbours (GPT-J, GLM)."""
    even, odd = neighbours(x)
    return neighbours_joined(-odd, even)


def by_table(x: Any, turned: Any, cos: Any, sin: Any, name: str) -> Any:
    """``turned`` is a function of x; the choice ``name`` says where x is cast to fp32, if the site has the cast."""
    return one_of(
        name,
        as_given=lambda: (x * cos + turned(x) * sin).to(x.dtype),
        wide_after=lambda: (x.float() * cos + turned(x).float() * sin).to(x.dtype),
    )


def by_angle(x: Any, pair: Any, join: Any, cos: Any, sin: Any) -> Any:
    """The same with one entry of cos and sin for each pair: GPT-OSS, and code after gpt-fast."""
    (a, b), (again, other) = pair(x), pair(x)  # some models cut once, some at every use; this finds both
    return join(a * cos - b * sin, other * cos + again * sin).to(x.dtype)


def by_complex(x: Any, turns: Any) -> Any:
    """Neighbours as complex numbers times unit ones, in fp32."""
    turned = torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * turns
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
