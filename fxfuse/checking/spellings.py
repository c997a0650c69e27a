"""Spellings: the view's equalities, backwards. One row is one function, and a new row is all that a new rule needs.

Given the canonical arguments of a node, a row writes the same value in other words, or declines with None. Rows are
not trusted: `respell` keeps what one wrote only where it gives the same bits (in rows marked ``rounds``, the same up
to the last place of fp32, and never in a lower precision).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx

from fxfuse.checking.sketch import META
from fxfuse.view import ops
from fxfuse.view.rules import RULES

if TYPE_CHECKING:
    from fxfuse.checking.respell import Speller

Write = Callable[["Speller", Mapping[str, Any]], "fx.Node | None"]


@dataclass(frozen=True)
class Row:
    """An equality, backwards. ``equates`` is (canonical op, raw op): the row is used where the view has that rule."""

    name: str
    write: Write
    equates: tuple[str, str] | None = None
    rounds: bool = False

    @property
    def is_equated(self) -> bool:
        """Whether the view has a rule that reads this spelling."""
        return self.equates is None or any(target == self.equates[0] for target, _ in RULES.get(self.equates[1], ()))


ROWS: dict[str, list[Row]] = {}
"""By the op that a node spells before the view's rules."""


def row(name: str, *at: str, equates: tuple[str, str] | None = None, rounds: bool = False) -> Callable[[Write], Write]:
    """Register a row for nodes that spell one of the ops ``at``."""

    def register(write: Write) -> Write:
        for op in at:
            ROWS.setdefault(op, []).append(Row(name, write, equates, rounds))
        return write

    return register


# --- squares and roots ----------------------------------------------------------------------------------------------


@row("x * x", "square", equates=("square", "mul"))
def product_with_itself(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    return s.function(torch.mul, a["input"], a["input"])


@row("x ** 2", "square", equates=("square", "pow"))
def power_of_two(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    return s.method("pow", a["input"], s.random.choice([2, 2.0]))


@row("square of pow", "pow", equates=("square", "pow"))
def square_of_pow(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    if a["exponent"] != 2:
        return None
    x = a["input"]
    return s.random.choice([lambda: s.function(torch.square, x), lambda: s.function(torch.mul, x, x)])()


@row("sqrt as power", "sqrt", equates=("sqrt", "pow"))
def root_as_power(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    return s.function(torch.pow, a["input"], 0.5)


@row("rsqrt as power", "rsqrt", equates=("rsqrt", "pow"), rounds=True)
def reciprocal_root_as_power(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    return s.function(torch.pow, a["input"], -0.5)


@row("1 / sqrt", "rsqrt", equates=("rsqrt", "div"), rounds=True)
def one_over_root(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    return s.over(1, a["input"])


@row("sqrt().reciprocal()", "rsqrt", equates=("rsqrt", "reciprocal"), rounds=True)
def reciprocal_of_root(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    return s.method("reciprocal", s.method("sqrt", a["input"]))


@row("x / sqrt(v)", "mul", equates=("rsqrt", "div"), rounds=True)
def divided_by_root(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    for x, factor in ((a["input"], a["other"]), (a["other"], a["input"])):
        if isinstance(factor, fx.Node) and isinstance(x, fx.Node) and s.spells(factor, "rsqrt"):
            return s.over(x, s.arguments(factor)["input"])
    return None


# --- reductions and activations -------------------------------------------------------------------------------------


@row("sum / n", "mean", equates=("mean", "div"), rounds=True)
def sum_over_count(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    dim = a.get("dim")
    dim = dim[0] if isinstance(dim, tuple) and len(dim) == 1 else dim
    if not isinstance(dim, int) or "dtype" in a:
        return None
    count = s.example(a["input"]).shape[dim]
    total = s.method("sum", a["input"], dim, keepdim=a.get("keepdim", False))
    return s.function(torch.div, total, count) if isinstance(count, int) else None


@row("x * sigmoid(x)", "silu", equates=("silu", "mul"), rounds=True)
def times_own_sigmoid(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    return s.shuffled_product(a["input"], s.function(torch.sigmoid, a["input"]))


@row("mean of a cast", "mean", "sum", "softmax", "log_softmax", equates=("mean", "mean"))
def reduction_that_casts(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    cast, op = a["input"], ops.spec_of(s.at)
    if op is None or "dtype" in a or not isinstance(a.get("dim"), int | tuple) or not s.spells(cast, "to"):
        return None
    source = cast.all_input_nodes[0]
    dim = list(a["dim"]) if isinstance(a["dim"], tuple) else a["dim"]
    keep = {"keepdim": a["keepdim"]} if "keepdim" in a else {}
    return s.method(op.name, source, dim, **keep, dtype=s.example(cast).dtype)


@row("gelu by its formula", "gelu", equates=("gelu", "mul"), rounds=True)
def gelu_by_formula(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    x = a["input"]
    if a.get("approximate") == "tanh":
        cubed = s.function(torch.mul, s.function(torch.pow, x, 3.0), 0.044715)
        curve = s.function(torch.tanh, s.function(torch.mul, s.function(torch.add, x, cubed), math.sqrt(2 / math.pi)))
    else:
        curve = s.function(torch.erf, s.function(torch.div, x, math.sqrt(2)))
    return s.function(torch.mul, s.function(torch.mul, x, 0.5), s.function(torch.add, curve, 1.0))


@row("mish by its formula", "mish", equates=("mish", "mul"), rounds=True)
def mish_by_formula(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    return s.shuffled_product(a["input"], s.function(torch.tanh, s.function(F.softplus, a["input"])))


# --- arithmetic -----------------------------------------------------------------------------------------------------


@row("times a power of two", "div", equates=("mul", "div"))
def times_power_of_two(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    by = a["other"]
    return s.function(torch.mul, a["input"], 1.0 / by) if _is_power_of_two(by) and "rounding_mode" not in a else None


@row("over a power of two", "mul", equates=("mul", "div"))
def over_power_of_two(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    by = a["other"]
    return s.function(torch.div, a["input"], 1.0 / by) if _is_power_of_two(by) else None


def _is_power_of_two(number: Any) -> bool:
    return isinstance(number, float) and math.frexp(number)[0] == 0.5


@row("times minus one", "neg", equates=("neg", "mul"))
def times_minus_one(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    return s.function(torch.mul, a["input"], -1)


@row("rsub", "sub", equates=("sub", "rsub"))
def reversed_difference(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    return None if "alpha" in a else s.function(torch.rsub, a["other"], a["input"])


@row("masked_fill", "where", equates=("where", "masked_fill"))
def filled(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    if isinstance(a.get("input"), fx.Node):
        return None
    return s.method("masked_fill", a["other"], a["condition"], a["input"])


@row("where", "masked_fill", equates=("where", "masked_fill"))
def chosen_where(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    return s.function(torch.where, a["mask"], a["value"], a["input"])


# --- projections ----------------------------------------------------------------------------------------------------


@row("x @ w.t()", "linear", equates=("linear", "matmul"))
def matmul_with_transposed(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    if a.get("bias") is not None:
        return None
    w = a["weight"]
    flip = s.random.choice([
        lambda: s.method("t", w), lambda: s.method("transpose", w, 0, 1), lambda: s.method("transpose", w, -2, -1),
        lambda: s.function(getattr, w, "T"), lambda: s.function(getattr, w, "mT"), lambda: s.method("permute", w, 1, 0),
    ])  # fmt: skip
    return s.function(torch.matmul, a["input"], flip())


@row("x @ w.t() + b", "linear", equates=("linear", "add"))
def matmul_and_bias(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    if a.get("bias") is None:
        return None
    return s.function(torch.add, s.function(torch.matmul, a["input"], s.method("t", a["weight"])), a["bias"])


@row("addmm", "linear", equates=("linear", "addmm"))
def addmm(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    if a.get("bias") is None or len(s.example(a["input"]).shape) != 2:
        return None
    return s.function(torch.addmm, a["bias"], a["input"], s.method("t", a["weight"]))


@row("einsum", "linear", equates=("matmul", "einsum"))
def einsum(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    return None if a.get("bias") is not None else s.function(torch.einsum, "...d,nd->...n", a["input"], a["weight"])


@row("linear of rows", "linear", equates=("linear", "reshape"))
def linear_of_rows(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    x = a["input"]
    if len(s.example(x).shape) < 3:
        return None
    lead = s.sizes(x)[:-1]
    flat = s.function(F.linear, s.method("reshape", x, -1, s.example(x).shape[-1]), a["weight"], a.get("bias"))
    return s.method("view", flat, (*lead, s.example(flat).shape[-1]))


@row("linear of matmul", "matmul", equates=("linear", "matmul"))
def linear_of_matmul(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    other = a["other"]
    if not isinstance(other, fx.Node) or not s.spells(other, "t"):
        return None
    return s.function(F.linear, a["input"], s.arguments(other)["input"])


# --- permutations ---------------------------------------------------------------------------------------------------


@row("transposed", "transpose", "t", equates=("transpose", "transpose"))
def transposed(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    x = a["input"]
    rank = len(s.example(x).shape)
    swap = {d % rank for d in (a.get("dim0", 0), a.get("dim1", 1))}
    if len(swap) != 2:
        return None
    i, j = sorted(swap)
    order = list(range(rank))
    order[i], order[j] = j, i
    ways: list[Callable[[], fx.Node]] = [
        lambda: s.method("transpose", x, i, j), lambda: s.method("transpose", x, j - rank, i - rank),
        lambda: s.function(torch.swapaxes, x, i, j), lambda: s.method("permute", x, *order),
    ]  # fmt: skip
    if swap == {rank - 2, rank - 1}:
        ways.append(lambda: s.function(getattr, x, "mT"))
    return s.random.choice(ways)()


# --- splitting ------------------------------------------------------------------------------------------------------


@row("chunk, split and slices", "getitem", equates=("part", "getitem"))
def part(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    source, index = a["input"], a["index"]
    if not isinstance(index, int) or not isinstance(source, fx.Node):
        return None
    if not (s.spells(source, "chunk") or s.spells(source, "split")):
        return None
    args = s.arguments(source)
    x, dim = args["input"], args.get("dim", 0)
    sizes = [piece.shape[dim] for piece in s.example(source)]
    if not all(isinstance(size, int) for size in sizes) or len(set(sizes)) != 1:
        return None
    size, count = sizes[0], len(sizes)
    start = index % count * size
    pieces = s.random.choice([
        lambda: s.method("chunk", x, count, dim), lambda: s.function(torch.chunk, x, chunks=count, dim=dim),
        lambda: s.method("split", x, size, dim=dim), lambda: s.function(torch.split, x, [size] * count, dim),
        lambda: None,
    ])()  # fmt: skip
    if pieces is not None:
        return s.function(operator.getitem, pieces, index)
    is_last = dim in (-1, len(s.example(x).shape) - 1)
    return s.function(operator.getitem, x, (Ellipsis, slice(start, start + size))) if is_last else None


# --- casts ----------------------------------------------------------------------------------------------------------

_METHODS = {torch.float32: "float", torch.float64: "double", torch.float16: "half", torch.bfloat16: "bfloat16"}


@row("spellings of a cast", "to")
def cast(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    wanted, before = s.example(s.at), s.example(a["input"])
    if wanted.device != before.device:
        return None
    x, dtype = a["input"], wanted.dtype
    like = [n for n in s.sketch.graph.find_nodes(op="placeholder") if getattr(n.meta.get(META), "dtype", None) is dtype]
    ways: list[Callable[[], fx.Node]] = [
        lambda: s.method("to", x, dtype), lambda: s.method("to", x, dtype=dtype), lambda: s.method("type", x, dtype),
    ]  # fmt: skip
    if dtype in _METHODS:
        ways.append(lambda: s.method(_METHODS[dtype], x))
    if like:
        other = s.random.choice(like)
        ways += [lambda: s.method("type_as", x, other), lambda: s.method("to", x, other)]
    return s.random.choice(ways)()


@row("implied widening, written out", "mul", "add")
def written_widening(s: Speller, a: Mapping[str, Any]) -> fx.Node | None:
    for name, other in (("input", "other"), ("other", "input")):
        x, sibling = a[name], a[other]
        if not (isinstance(x, fx.Node) and isinstance(sibling, fx.Node) and x.op == "placeholder"):
            continue
        wide, parameter = s.example(sibling), isinstance(s.example(x), torch.nn.Parameter)
        if parameter and s.example(x).dtype in (torch.bfloat16, torch.float16) and wide.dtype is torch.float32:
            both = {name: s.method("float", x), other: sibling}
            target: Any = s.at.target if s.at.op == "call_function" else getattr(torch, str(s.at.target))
            return s.function(target, both["input"], both["other"])
    return None


# --- nodes that are their operand -----------------------------------------------------------------------------------


def _same_shape(s: Speller, x: fx.Node) -> fx.Node:
    return s.method(s.random.choice(["view", "reshape"]), x, s.sizes(x))


IDENTITIES: dict[str, tuple[str, Callable[[Speller, fx.Node], fx.Node]]] = {
    "a cast to the dtype it has": ("cast", lambda s, x: s.method("to", x, s.example(x).dtype)),
    "type_as itself": ("cast", lambda s, x: s.method("type_as", x, x)),
    "contiguous": ("contiguous", lambda s, x: s.method("contiguous", x)),
    "clone": ("clone", lambda s, x: s.method("clone", x)),
    "a view of the same shape": ("reshape", _same_shape),
    "expand to the same shape": ("expand", lambda s, x: s.method("expand", x, s.sizes(x))),
    "a slice of everything": ("getitem", lambda s, x: s.function(operator.getitem, x, (Ellipsis, slice(None)))),
    "inactive dropout": ("dropout", lambda s, x: s.function(F.dropout, x, 0.3, False)),
    "dropout of nothing": ("dropout", lambda s, x: s.function(F.dropout, x, 0.0, True)),
}
"""Name -> (the raw op that the view sees through, what writes it)."""
