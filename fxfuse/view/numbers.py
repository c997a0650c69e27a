"""`torch.mul(0.3, x)` is not ``0.3 * x`` in bf16 and fp16: a number that comes first is rounded to the tensor's dtype.

Python turns ``0.3 * x`` into ``x * 0.3``, where eager keeps the number in fp32, and ``0.3 / x`` into
``x.reciprocal() * 0.3``. The functions take the number as they are given it. In fp32 products are equal, and
quotients up to the last place.
"""

from __future__ import annotations

import math
import operator
import struct
from typing import Any

import torch

from fxfuse.safeguards import safeguard

FIRST_NUMBER = safeguard("first_number", "a number that eager rounds to bf16, taken for one that it does not")

NUMBER_AS_GIVEN = (torch.mul, torch.multiply, torch.div, torch.divide, torch.true_divide)
"""Functions that take a number as their first operand, and as it is given."""

SWAPPED_BY_PYTHON = (operator.mul, operator.truediv)
_LOW = (torch.bfloat16, torch.float16)


def rounds_its_number(op: str, number: Any, dtype: Any) -> bool:
    """Whether ``mul`` or ``div``, whose first operand is ``number``, is another function than the operator's.

    Args:
        number: a literal, or None for one that the graph gets from outside.
        dtype: the result's; None or a symbol where a pattern leaves it open.
    """
    if dtype in (torch.float32, torch.float64):
        return False
    if isinstance(number, bool) or not isinstance(number, int | float):
        return not FIRST_NUMBER(number is not None)
    if op == "div":
        return not FIRST_NUMBER(number == 1)
    return not FIRST_NUMBER(all(_is_exact(number, low) for low in ((dtype,) if dtype in _LOW else _LOW)))


def _is_exact(number: float, dtype: torch.dtype) -> bool:
    if not math.isfinite(number):
        return True
    try:
        low = struct.pack("e", number) if dtype is torch.float16 else struct.pack(">f", number)
    except OverflowError:
        return False
    if dtype is torch.float16:
        return float(struct.unpack("e", low)[0]) == number
    return low[2:] == b"\0\0" and float(struct.unpack(">f", low)[0]) == number


__all__ = ["NUMBER_AS_GIVEN", "SWAPPED_BY_PYTHON", "rounds_its_number"]
