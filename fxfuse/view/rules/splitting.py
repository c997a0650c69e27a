"""Parts of a tensor: equal parts, slices and single entries, however they are taken out; and tensors joined."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from torch import fx

from fxfuse.safeguards import safeguard
from fxfuse.view.ops import MULTIPLE
from fxfuse.view.rules.conditions import is_wide
from fxfuse.view.rules.registry import rule
from fxfuse.view.values import SymbolicMeta, Value, same_size

if TYPE_CHECKING:
    from fxfuse.view.view import View

EQUAL_PARTS = safeguard("equal_parts", "an unequal part taken for one of equal parts")
SAME_BORDER = safeguard("same_border", "a slice taken for another that begins or ends elsewhere")

# --- items of a tuple -----------------------------------------------------------------------------------------------


@rule("getitem", "part", reads="chunk split tensor_split unbind")
def item_of_split(view: View, value: Value) -> Value | None:
    """One of the tensors that ``chunk``, ``split``, ``tensor_split`` or ``unbind`` gives."""
    source, index = view.operand(value.args["input"]), value.args["index"]
    if not isinstance(source, Value) or source.op not in _SPLITS or type(index) is not int or not source.known:
        return None
    tensor = view.operand(source.args["input"])
    dim = view.dimension(source)
    if not isinstance(tensor, Value) or type(dim) is not int:
        return None
    size = tensor.shape[dim] if tensor.shape is not None else None
    if source.op == "unbind":
        at = index % size if type(size) is int else index
        args = {"input": tensor, "dim": dim, "index": at}
        return value.become("select", args, "one of unbind", source.nodes)
    count = _equal_parts(view, source, size)
    if count is not None and -count <= index < count:
        args = {"input": tensor, "dim": dim, "index": index % count, "of": count}
        return value.become("part", args, "equal parts", source.nodes)
    sizes = source.args.get("size")
    if not isinstance(sizes, tuple) or not -len(sizes) <= index < len(sizes):
        return None
    index %= len(sizes)
    borders: dict[str, Any] = {}
    if index == 1 and not isinstance(sizes[0], int):
        borders["start"] = sizes[0]
    elif index:
        if not all(type(s) is int for s in sizes[:index]):
            return None
        borders["start"] = sum(sizes[:index])
    if index < len(sizes) - 1:
        if index and not all(type(s) is int for s in sizes[: index + 1]):
            return None
        borders["stop"] = sum(sizes[: index + 1]) if index else sizes[0]
    return value.become("slice", {"input": tensor, "dim": dim, **borders}, "a slice", source.nodes)


_SPLITS = {"chunk", "split", "tensor_split", "unbind"}


def _equal_parts(view: View, source: Value, size: Any) -> int | None:
    """How many equal parts a split gives, or None."""
    if source.op in {"chunk", "tensor_split"}:
        count = source.args["chunks" if source.op == "chunk" else "sections"]
        if type(count) is not int or count < 1:
            return None
        exact = view.symbolic or (type(size) is int and size % count == 0 and size >= count)
        return count if EQUAL_PARTS(exact) else None
    wanted = source.args["size"]
    if isinstance(wanted, tuple):
        return len(wanted) if wanted and EQUAL_PARTS(all(_same_part(w, wanted[0]) for w in wanted)) else None
    if type(size) is int and type(wanted) is int and wanted > 0 and EQUAL_PARTS(size % wanted == 0):
        return max(size // wanted, 1)
    return None


def _same_part(a: Any, b: Any) -> bool:
    return a is b or (not isinstance(a, fx.Node) and not isinstance(b, fx.Node) and same_size(a, b))


@rule("getitem", "mean", reads="var_mean")
def item_of_variance_and_mean(view: View, value: Value) -> Value | None:
    """Last place of fp32 may differ."""
    source, index = view.operand(value.args["input"]), value.args["index"]
    if not isinstance(source, Value) or source.op != "var_mean" or index not in (0, 1) or not is_wide(view, value):
        return None
    args = dict(source.args)
    if index == 1:
        args.pop("correction", None)
    return value.become("mean" if index else "var", args, "one of var_mean", source.nodes)


# --- indexing -------------------------------------------------------------------------------------------------------


@rule("getitem", "slice")
def index_by_steps(view: View, value: Value) -> Value | None:
    """``x[..., None, 4:]`` as an ``unsqueeze`` of a ``slice``, from the last dimension to the first."""
    source, index = view.operand(value.args["input"]), value.args["index"]
    if not isinstance(source, Value) or source.op in MULTIPLE:
        return None
    if source.rank is None and not (view.symbolic and source.known and isinstance(index, tuple)):
        return None
    steps = _steps(view, source, index if isinstance(index, tuple) else (index,))
    if not steps:
        return None
    inner: Any = source
    parts = []
    for op, args in steps[:-1]:
        inner = value.part(op, {"input": inner, **args}, SymbolicMeta(value.dtype, None, value.device))
        parts.append(inner)
    op, args = steps[-1]
    made = value.become(op, {"input": inner, **args}, "index by steps")
    for part in parts:
        part.owner = made
    return made


def _steps(view: View, source: Value, index: tuple[Any, ...]) -> list[tuple[str, dict[str, Any]]] | None:
    """What an index does, dimension by dimension from the last; None for an index that the view does not know."""
    given = [type(entry) for entry in index]
    if not _INDICES.issuperset(given) or given.count(_ELLIPSIS) > 1:
        return None
    shape = source.shape
    if _ELLIPSIS not in given:
        if shape is None:
            return None
        index = (*index, Ellipsis)
    steps: list[tuple[str, dict[str, Any]]] = []
    done = taken = 0  # dimensions right of here: of the result, of the source
    for entry in reversed(index):
        if entry is Ellipsis:
            if shape is None:
                return steps if index[0] is Ellipsis else None
            rest = len(shape) - given.count(int) - given.count(slice)
            done, taken = done + rest, taken + rest
            continue
        dim = -(done + 1)
        if entry is None:
            steps.append(("unsqueeze", {"dim": dim}))
            done += 1
            continue
        taken += 1
        size = shape[-taken] if shape is not None else None
        if type(entry) is int:
            steps.append(("select", {"dim": dim, "index": entry % size if type(size) is int else entry}))
            continue
        cut = _cut(view, source, size, entry, taken)
        if cut is None:
            return None
        if cut[0]:
            steps.append((cut[0], {"dim": dim, **cut[1]}))
        done += 1
    return steps


_ELLIPSIS = type(Ellipsis)
_INDICES = {int, slice, _ELLIPSIS, type(None)}
_BORDERS = {int, type(None)}


def _cut(view: View, source: Value, size: Any, entry: slice, taken: int) -> tuple[str, dict[str, Any]] | None:
    """A slice of one dimension in canonical words: ``part``, ``slice``, or nothing for the whole of it."""
    start, stop, step = entry.start, entry.stop, 1 if entry.step is None else entry.step
    if type(step) is not int or step < 1:
        return None
    if type(size) is int and type(start) in _BORDERS and type(stop) in _BORDERS:
        return cut_of(size, start, stop, step)
    if taken == 1 and step == 1 and view.symbolic:
        share = _share_of_last(view, source, start, stop)
        if share is not None:
            return "part", share
    if not all(i is None or type(i) is int or isinstance(i, fx.Node) for i in (start, stop)):
        return None
    args: dict[str, Any] = {} if start in (None, 0) else {"start": start}
    if stop is not None:
        args["stop"] = stop
    if step != 1:
        args["step"] = step
    return ("slice", args) if args else ("", {})


def cut_of(size: int, start: int | None, stop: int | None, step: int) -> tuple[str, dict[str, Any]] | None:
    """A slice of a dimension of known size, in the words of `_cut`; None for an empty one."""
    first, last, step = slice(start, stop, step).indices(size)
    length = len(range(first, last, step))
    if length == 0:
        return None
    if step == 1 and length == size:
        return "", {}
    if step == 1 and EQUAL_PARTS(size % length == 0 and first % length == 0):
        return "part", {"index": first // length, "of": max(size // length, 1)}
    args = {"start": first} if first else {}
    end = first + (length - 1) * step + 1
    if not SAME_BORDER(end + step - 1 >= size):
        args["stop"] = end
    if step != 1:
        args["step"] = step
    return "slice", args


def _share_of_last(view: View, source: Value, start: Any, stop: Any) -> dict[str, Any] | None:
    """``x[..., : x.shape[-1] // 2]`` and its other half, in a pattern."""
    if start in (None, 0):
        count = _fraction(view, source, stop)
        return None if count is None else {"index": 0, "of": count}
    count = _fraction(view, source, start)
    return {"index": 1, "of": 2} if count == 2 and stop is None else None


def _fraction(view: View, source: Value, raw: Any) -> int | None:
    """``n`` where this is the size of the source's last dimension divided by n."""
    if not isinstance(raw, fx.Node) or raw.target is not operator.floordiv or type(raw.args[1]) is not int:
        return None
    size = raw.args[0]
    if not isinstance(size, fx.Node):
        return None
    of: Any = size.args[0]
    if size.target is operator.getitem and size.args[1] == -1 and isinstance(of, fx.Node):
        reads = (of.target is getattr and of.args[1] == "shape") or (of.target == "size" and len(of.args) == 1)
        of = of.args[0] if reads else None
    elif size.target != "size" or tuple(size.args[1:]) != (-1,):
        return None
    return raw.args[1] if isinstance(of, fx.Node) and view.value(of) is source else None


@rule("narrow", "slice")
def narrowed(view: View, value: Value) -> Value | None:
    source = view.operand(value.args["input"])
    dim, start, length = value.args["dim"], value.args["start"], value.args["length"]
    if not isinstance(source, Value) or not all(type(i) is int for i in (dim, start, length)) or length < 1:
        return None
    size = source.shape[dim] if source.shape is not None else None
    if type(size) is int:
        start %= size
        cut = cut_of(size, start, start + length, 1)
    else:
        cut = ("slice", {**({"start": start} if start else {}), "stop": start + length}) if start >= 0 else None
    if cut is None:
        return None
    if not cut[0]:
        return value.become("slice", {"input": source, "dim": dim}, "narrow = slice")
    return value.become(cut[0], {"input": source, "dim": dim, **cut[1]}, "narrow = slice")


@rule("select", "part", reads="split_last unflatten")
def entry_of_split(view: View, value: Value) -> Value | None:
    """``h.unflatten(-1, (2, -1))[..., 0, :]`` is a half of h, and ``h.unflatten(-1, (-1, 2))[..., 0]`` every other."""
    source, dim, index = view.operand(value.args["input"]), value.args["dim"], value.args["index"]
    if not isinstance(source, Value) or type(index) is not int or dim not in (-1, -2):
        return None
    if source.op == "split_last" and type(source.args["size"]) is int:
        size = source.args["size"]
        x = view.operand(source.args["input"])
        width = x.shape[-1] if isinstance(x, Value) and x.shape else None
        if dim == -1 and index >= 0:
            args = {"input": x, "dim": -1, **({"start": index} if index else {}), "step": size}
            return value.become("slice", args, "entry of split = stride", source.nodes)
        if dim == -2 and type(width) is int and index >= 0:
            args = {"input": x, "dim": -1, "index": index, "of": width // size}
            return value.become("part", args, "entry of split = part", source.nodes)
    if source.op == "unflatten" and view.symbolic and source.args["dim"] == -1 and dim == -2:
        shape = source.args["shape"]
        if isinstance(shape, tuple) and len(shape) == 2 and type(shape[0]) is int and shape[1] == -1:
            x = view.operand(source.args["input"])
            args = {"input": x, "dim": -1, "index": index % shape[0], "of": shape[0]}
            return value.become("part", args, "entry of split = part", source.nodes)
    return None


@rule("select", "select")
def entry_from_the_front(view: View, value: Value) -> Value | None:
    source, dim, index = view.operand(value.args["input"]), value.args["dim"], value.args["index"]
    size = source.shape[dim] if isinstance(source, Value) and source.shape and type(dim) is int else None
    if type(index) is not int or index >= 0 or type(size) is not int:
        return None
    return value.become("select", {**value.args, "index": index % size}, "index from the front")


# --- joining --------------------------------------------------------------------------------------------------------


@rule("hstack", "cat")
def stacked_sideways(view: View, value: Value) -> Value | None:
    tensors = value.args["tensors"]
    first = view.operand(tensors[0]) if isinstance(tensors, tuple) and tensors else None
    rank = first.rank if isinstance(first, Value) else None
    if not rank:
        return None
    return value.become("cat", {"tensors": tensors, "dim": -1 if rank == 1 else 1 - rank}, "hstack = cat")
