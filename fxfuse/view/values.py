"""What the view hands out: canonical values, and the words for what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from fxfuse.compat import statically_known_true

if TYPE_CHECKING:
    from fxfuse.view.leaves import Leaf


@dataclass(frozen=True)
class DtypeOf:
    """The dtype of another value, in a pattern, where dtypes are symbols: ``x.dtype``."""

    of: Any  # an fx.Node while raw, a Value once resolved

    def __str__(self) -> str:
        return f"{self.of}.dtype"


class Value:
    """One canonical operation, or one input, of a graph.

    ``args`` maps canonical argument names to FX nodes, values or constants (resolve them with ``View.operand``).
    ``node`` is the FX node that carries the result; ``absorbed`` are further nodes that the canonical op stands for
    (``1 / sqrt(v)`` is one ``rsqrt`` that absorbed the ``sqrt``); ``steps`` names the view's rules that led here.
    ``twins`` are nodes that compute the same again: a model may cast one tensor twice. ``readers`` are the values that
    have this one as a direct operand, in graph order, as far as the view has read (ask ``View.readers``).
    ``plain`` is, in a pattern that leaves its dtype open, the form that holds in every dtype, where this one holds in
    fp32 and wider only.
    A *virtual* value has no node of its own: it is a part of its ``owner``'s.
    """

    __slots__ = (
        "_shape", "absorbed", "args", "known", "leaf", "meta", "node",
        "op", "owner", "plain", "readers", "steps", "twins",
    )  # fmt: skip

    def __init__(
        self,
        op: str,
        args: Mapping[str, Any],
        node: fx.Node,
        absorbed: tuple[fx.Node, ...] = (),
        steps: tuple[str, ...] = (),
        known: bool = True,
        leaf: Leaf | None = None,
        meta: Any = None,
    ) -> None:
        self.op = op
        self.args = args
        self.node = node
        self.absorbed = absorbed
        self.steps = steps
        self.known = known
        self.leaf = leaf
        self.owner: Value | None = None
        self.meta = meta
        self.twins: tuple[fx.Node, ...] = ()
        self.readers: list[Value] = []
        self.plain: Value | None = None
        self._shape: tuple[Any, ...] | None = None

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """The FX nodes that this value stands for; empty for an input and for a virtual value."""
        if self.leaf is not None or self.owner is not None:
            return ()
        return (*self.absorbed, self.node, *self.twins)

    @property
    def dtype(self) -> Any:
        return getattr(self.meta, "dtype", None)

    @property
    def shape(self) -> tuple[Any, ...] | None:
        if self._shape is None:  # a fake tensor makes it anew each time
            shape = getattr(self.meta, "shape", None)
            self._shape = None if shape is None else tuple(shape)
        return self._shape

    @property
    def rank(self) -> int | None:
        shape = self.shape
        return None if shape is None else len(shape)

    @property
    def device(self) -> torch.device | None:
        return getattr(self.meta, "device", None)

    def become(self, op: str, args: Mapping[str, Any], step: str, absorbed: Sequence[fx.Node] = ()) -> Value:
        """This value under another canonical op, by the rule called ``step``."""
        made = Value(op, args, self.node, (*self.absorbed, *absorbed), (*self.steps, step), meta=self.meta)
        made._shape = self._shape
        return made

    def part(self, op: str, args: Mapping[str, Any], meta: Any = None) -> Value:
        """A virtual operand of what this value becomes. The caller sets its ``owner``."""
        return Value(op, args, self.node, meta=meta)

    def __str__(self) -> str:
        return self.node.name

    def __repr__(self) -> str:
        return f"<{self.op} {self.node.name}: {describe_tensor(self) or 'unknown'}>"


@dataclass(frozen=True)
class SymbolicMeta:
    """dtype of a pattern's value, where it is known: a ``torch.dtype`` or a :class:`DtypeOf`."""

    dtype: Any = None
    shape: tuple[Any, ...] | None = None
    device: Any = None


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are equal for every input that this graph serves; adds no guard."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    try:
        return bool(statically_known_true(a == b))
    except (TypeError, AttributeError):
        return False


def same_shape(a: Sequence[Any] | None, b: Sequence[Any] | None) -> bool:
    if a is None or b is None or len(a) != len(b):
        return False
    for x, y in zip(a, b, strict=True):
        if x is not y and not (x == y if type(x) is int and type(y) is int else same_size(x, y)):
            return False
    return True


def dtype_name(dtype: Any) -> str:
    """``bf16`` for ``torch.bfloat16``, as in FX's readable graphs."""
    short = {
        torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16",
        torch.int64: "i64", torch.int32: "i32", torch.bool: "b8",
    }  # fmt: skip
    return short.get(dtype) or str(dtype).removeprefix("torch.")


def describe_tensor(value: Value) -> str:
    """``bf16[s0, 4096]``, or an empty string where nothing is known."""
    if value.shape is None:
        return ""
    return f"{dtype_name(value.dtype)}[{', '.join(map(str, value.shape))}]"
