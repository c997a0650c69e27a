"""Reshapes and permutations of dimensions: each of the same effect is one op.

Dimensions count from the last one, so that a pattern need not know how many there are. Sizes are those that came out,
not what was written (``-1``, a size read from another tensor).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import fx

from fxfuse.safeguards import safeguard
from fxfuse.view.ops import is_transpose_attribute
from fxfuse.view.rules.conditions import is_read_once
from fxfuse.view.rules.registry import rule
from fxfuse.view.values import Value, same_shape, same_size

if TYPE_CHECKING:
    from fxfuse.view.view import View

SAME_DIMENSIONS = safeguard("same_dimensions", "a permutation taken for one of other dimensions")
ONLY_THE_LAST = safeguard("only_the_last", "a reshape of other dimensions taken for a split or a merge of the last")
REPEATED = safeguard("repeated", "a reshape of an expansion that tiles taken for one that repeats each entry")


# --- permutations ---------------------------------------------------------------------------------------------------


@rule("t", "transpose", settled=True)
def matrix_transposed(view: View, value: Value) -> Value | None:
    """``w.t()``, ``w.mT``, and ``w.T`` of two dimensions."""
    source = view.operand(value.args["input"])
    rank = source.rank if isinstance(source, Value) else None
    if not is_transpose_attribute(value.node, "mT") and not SAME_DIMENSIONS(
        rank == 2 or (rank is None and view.symbolic)
    ):
        return None
    return _swap(value, -2, -1, "t(x) = transpose(x, -2, -1)")


def _swap(value: Value, a: int, b: int, step: str) -> Value:
    return value.become("transpose", {"input": value.args["input"], "dim0": min(a, b), "dim1": max(a, b)}, step)


@rule("transpose", "transpose", settled=True)
def transpose_from_the_end(view: View, value: Value) -> Value | None:
    a, b = value.args["dim0"], value.args["dim1"]
    source = view.operand(value.args["input"])
    rank = source.rank if isinstance(source, Value) else None
    if type(a) is not int or type(b) is not int:
        return None
    if rank == 0:
        return None
    if rank is not None:
        low, high = sorted((a % rank - rank, b % rank - rank))
    else:
        low, high = sorted((a, b))
    return None if (low, high) == (a, b) else _swap(value, low, high, "dimensions from the end")


@rule("permute", "transpose", settled=True)
def permutation_from_the_end(view: View, value: Value) -> Value | None:
    """A permutation that swaps two dimensions is their transpose."""
    dims = value.args["dims"]
    if not all(type(d) is int for d in dims):
        return None
    rank = len(dims)
    order = tuple(d % rank - rank for d in dims)
    moved = [i for i, d in zip(range(-rank, 0), order, strict=True) if i != d]
    if len(moved) == 2:
        return _swap(value, moved[0], moved[1], "a swap of two dimensions")
    if order == tuple(dims):
        return None
    return value.become("permute", {"input": value.args["input"], "dims": order}, "dimensions from the end")


@rule("movedim", "permute")
def moved_dimensions(view: View, value: Value) -> Value | None:
    source = view.operand(value.args["input"])
    rank = source.rank if isinstance(source, Value) else None
    given: tuple[Any, Any] = (value.args["source"], value.args["destination"])
    old: list[Any]
    new: list[Any]
    old, new = (list(d) if isinstance(d, tuple) else [d] for d in given)
    if not all(type(d) is int for d in (*old, *new)):
        return None
    if rank is None:
        adjacent = len(old) == 1 and old[0] < 0 and new[0] < 0 and abs(old[0] - new[0]) == 1
        return _swap(value, old[0], new[0], "a swap of two dimensions") if adjacent else None
    if rank == 0:
        return None
    old, new = [d % rank for d in old], [d % rank for d in new]
    order: list[int | None] = [None] * rank
    for a, b in zip(old, new, strict=True):
        order[b] = a
    rest = iter(d for d in range(rank) if d not in old)
    dims = tuple(next(rest) if d is None else d for d in order)
    return value.become("permute", {"input": value.args["input"], "dims": dims}, "movedim = permute")


# --- reshapes -------------------------------------------------------------------------------------------------------


@rule("reshape", "linear", reads="linear")
def rows_and_back(view: View, value: Value) -> Value | None:
    """A projection of the flattened rows, given its leading dimensions back, as GPT-2's Conv1D does."""
    product = view.operand(value.args["input"])
    if not isinstance(product, Value) or product.op != "linear" or product.owner is not None:
        return None
    flat = view.operand(product.args["input"])
    if not isinstance(flat, Value) or flat.op not in _RESHAPES or not is_read_once(product.node):
        return None
    x = view.operand(flat.args["input"])
    if not isinstance(x, Value) or not x.shape or not flat.shape or not value.shape or not product.shape:
        return None
    rows = same_shape(x.shape[:-1], value.shape[:-1]) and same_size(x.shape[-1], flat.shape[-1])
    if not ONLY_THE_LAST(rows and same_size(value.shape[-1], product.shape[-1])):
        return None
    # Projections of one tensor may share its rows: whether others may read them, the match's gates know.
    absorbed = (*flat.nodes, *product.nodes)
    return value.become("linear", {**product.args, "input": x}, "linear of rows", absorbed)


_RESHAPES = {"reshape", "merge_last", "split_last", "rows"}


@rule("reshape", "repeat_interleave", reads="expand")
def repeated_heads(view: View, value: Value) -> Value | None:
    """``x[:, :, None].expand(..., n, ...).reshape(...)``, which gives each key and value head to n query heads."""
    spread = view.operand(value.args["input"])
    single = view.operand(spread.args["input"]) if isinstance(spread, Value) and spread.op == "expand" else None
    x = view.operand(single.args["input"]) if isinstance(single, Value) and single.op == "unsqueeze" else None
    if not isinstance(spread, Value) or not isinstance(single, Value) or not isinstance(x, Value) or single.owner:
        return None
    dim = single.args["dim"]
    if type(dim) is not int or dim >= 0 or not (spread.shape and single.shape and x.shape and value.shape):
        return None
    place, times = dim + len(single.shape) - 1, spread.shape[dim]
    if place < 0 or type(times) is not int or spread.rank != single.rank or value.rank != x.rank:
        return None
    others = same_shape(_without(spread.shape, place + 1), x.shape)
    kept = same_shape(_without(value.shape, place), _without(x.shape, place))
    if not REPEATED(others and kept and same_size(value.shape[place], x.shape[place] * times)):
        return None
    args = {"input": x, "repeats": times, "dim": place - len(x.shape)}
    return value.become("repeat_interleave", args, "repeated heads", (*single.nodes, *spread.nodes))


def _without(shape: Sequence[Any], place: int) -> tuple[Any, ...]:
    return (*shape[:place], *shape[place + 1 :])


@rule("reshape", "split_last")
@rule("unflatten", "split_last")
def last_dimension_split(view: View, value: Value) -> Value | None:
    """``[..., n * m]`` as ``[..., n, m]``: the last dimension into heads."""
    source = view.operand(value.args["input"])
    if not isinstance(source, Value):
        return None
    if view.symbolic:
        size = _written_size(view, value, source)
        return None if size is None else value.become("split_last", {"input": source, "size": size}, "last split")
    old, new = source.shape, value.shape
    if not old or not new or len(new) != len(old) + 1 or type(new[-1]) is not int:
        return None
    if not ONLY_THE_LAST(same_shape(old[:-1], new[:-2]) and same_size(old[-1], new[-2] * new[-1])):
        return None
    return value.become("split_last", {"input": source, "size": new[-1]}, "last split")


def _written_size(view: View, value: Value, source: Value) -> Any:
    """The size of the heads, in a pattern: of ``unflatten(-1, (-1, n))`` or ``view(x.shape[:-1] + (-1, n))``."""
    shape = value.args["shape"]
    if value.op == "unflatten":
        tail = shape if value.args["dim"] == -1 else None
    else:
        tail = _after_leading_shape(view, shape, source, 1)
    return tail[1] if isinstance(tail, tuple) and len(tail) == 2 and tail[0] == -1 and tail[1] != -1 else None


def _after_leading_shape(view: View, shape: Any, source: Value, dropped: int) -> Any:
    """``tail`` of ``source.shape[:-dropped] + tail``, as a pattern's trace has it."""
    node = shape[0] if isinstance(shape, tuple) and len(shape) == 1 else shape
    if not isinstance(node, fx.Node) or node.target is not operator.add:
        return None
    lead, tail = node.args
    if not isinstance(lead, fx.Node) or lead.target is not operator.getitem or lead.args[1] != slice(None, -dropped):
        return None
    whole = lead.args[0]
    if not isinstance(whole, fx.Node) or not whole.args or not isinstance(whole.args[0], fx.Node):
        return None
    reads_shape = whole.target is getattr and whole.args[1] == "shape"
    if not reads_shape and not (whole.op == "call_method" and whole.target == "size" and len(whole.args) == 1):
        return None
    return tuple(tail) if view.value(whole.args[0]) is source and isinstance(tail, tuple | list) else None


@rule("reshape", "merge_last")
@rule("flatten", "merge_last")
def last_dimensions_merged(view: View, value: Value) -> Value | None:
    """``[..., n, m]`` as ``[..., n * m]``: the heads into one dimension."""
    source = view.operand(value.args["input"])
    if not isinstance(source, Value):
        return None
    step = "last two merged"
    if view.symbolic:
        if value.op == "flatten":
            fits = value.args.get("start_dim") == -2 and "end_dim" not in value.args
        else:
            fits = _after_leading_shape(view, value.args["shape"], source, 2) == (-1,)
        return value.become("merge_last", {"input": source}, step) if fits else None
    old, new = source.shape, value.shape
    if not old or not new or len(new) != len(old) - 1:
        return None
    if not ONLY_THE_LAST(same_shape(old[:-2], new[:-1]) and same_size(old[-2] * old[-1], new[-1])):
        return None
    return value.become("merge_last", {"input": source}, step)


@rule("reshape", "rows")
@rule("flatten", "rows")
def rows_of_all(view: View, value: Value) -> Value | None:
    """``[..., n]`` as ``[rows, n]``: every leading dimension in one."""
    source = view.operand(value.args["input"])
    if not isinstance(source, Value):
        return None
    if view.symbolic:
        fits = value.op == "flatten" and "start_dim" not in value.args and value.args.get("end_dim") == -2
    else:
        old, new = source.shape or (), value.shape or ()
        fits = len(old) > 2 and len(new) == 2 and ONLY_THE_LAST(same_size(old[-1], new[-1]))
    return value.become("rows", {"input": source}, "all rows") if fits else None


@rule("flatten", "reshape")
@rule("unflatten", "reshape")
@rule("reshape_as", "reshape")
def any_reshape(view: View, value: Value) -> Value | None:
    shape = _known_sizes(value, ())
    if shape is None or view.symbolic:
        return None
    return value.become("reshape", {"input": value.args["input"], "shape": shape}, f"{value.op} = reshape")


@rule("expand_as", "expand")
def expanded_like(view: View, value: Value) -> Value | None:
    shape = _known_sizes(value, ())
    if shape is None or view.symbolic:
        return None
    return value.become("expand", {"input": value.args["input"], "size": shape}, "expand_as = expand")


@rule("reshape", "reshape")
def sizes_of_reshape(view: View, value: Value) -> Value | None:
    return _with_sizes(view, value, "shape")


@rule("expand", "expand")
def sizes_of_expand(view: View, value: Value) -> Value | None:
    return _with_sizes(view, value, "size")


def _with_sizes(view: View, value: Value, name: str) -> Value | None:
    written = value.args[name]
    sizes = None if view.symbolic else _known_sizes(value, written if isinstance(written, tuple) else ())
    if sizes is None or sizes == written:
        return None
    return value.become(value.op, {**value.args, name: sizes}, "sizes as they came out")


def _known_sizes(value: Value, written: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The sizes that came out: numbers, and for a symbolic size what was written there; None where that is unclear."""
    shape = value.shape
    if shape is None:
        return None
    symbolic = [i for i, size in enumerate(shape) if type(size) is not int]
    if not symbolic:
        return shape
    if len(symbolic) == 1 and value.op != "expand":
        return tuple(size if type(size) is int else -1 for size in shape)
    if len(written) != len(shape) or any(written[i] == -1 for i in symbolic):
        return None
    return tuple(size if type(size) is int else written[i] for i, size in enumerate(shape))
