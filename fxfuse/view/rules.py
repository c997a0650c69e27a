"""Directed equalities: the few rewrites under which two spellings are one canonical op.

Each rule reads one value and answers with another spelling of it, or None. Two kinds exist. A rule in `SEE_THROUGH`
says that a node *is* its operand. A rule in `RULES` gives the value another op. All are exact equalities of the
function computed (a cast that changes values is never one of them); where rounding may differ in the last place of
fp32, as between ``1/sqrt(v)`` and ``rsqrt(v)``, the rule says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from fxfuse.view.leaves import LeafKind
from fxfuse.view.values import DtypeOf, SymbolicMeta, Value, same_shape, same_size

if TYPE_CHECKING:
    from fxfuse.view.view import View

SeeThrough = Callable[["View", Value], bool]
Rule = Callable[["View", Value], Value | None]

SEE_THROUGH: dict[str, list[SeeThrough]] = {}
RULES: dict[str, list[tuple[str, Rule]]] = {}
ORIGINS: dict[str, set[str]] = {"cast": {"to"}}
"""Which table ops can turn into an op: ``silu`` may come from a ``mul``."""


WITHOUT_METADATA = {"contiguous", "clone", "alias", "dropout"}
"""Ops that a pattern is seen through at, too: their rules need neither shape nor dtype."""


def see_through(*ops: str) -> Callable[[SeeThrough], SeeThrough]:
    def register(rule: SeeThrough) -> SeeThrough:
        for op in ops:
            SEE_THROUGH.setdefault(op, []).append(rule)
        return rule

    return register


def rule(source: str, target: str, parts: tuple[str, ...] = ()) -> Callable[[Rule], Rule]:
    """Register a rule that turns ``source`` into ``target``, with these ops as virtual parts."""

    def register(function: Rule) -> Rule:
        RULES.setdefault(source, []).append((function.__name__, function))
        for made in (target, *parts):
            ORIGINS.setdefault(made, set()).update({source, *ORIGINS.get(source, ())})
        return function

    return register


# --- a node that is its operand -------------------------------------------------------------------------------------


@see_through("cast")
def cast_to_own_dtype(view: View, value: Value) -> bool:
    source = view.operand(value.args["input"])
    return isinstance(source, Value) and source.dtype is not None and source.dtype == value.dtype


@see_through("reshape", "expand", "flatten")
def shape_unchanged(view: View, value: Value) -> bool:
    source = view.operand(value.args["input"])
    return isinstance(source, Value) and same_shape(source.shape, value.shape)


@see_through("contiguous", "clone", "alias")
def copy_of_values(view: View, value: Value) -> bool:
    return isinstance(view.operand(value.args["input"]), Value)


@see_through("dropout")
def inactive_dropout(view: View, value: Value) -> bool:
    training = value.args.get("training", value.args.get("train", True))
    return training is False or value.args.get("p", 0.5) == 0


@see_through("getitem")
def whole_slice(view: View, value: Value) -> bool:
    """``x[:, 0:, :]`` of a tensor is that tensor."""
    index = value.args["index"]
    parts = index if isinstance(index, tuple) else (index,)
    source = view.operand(value.args["input"])
    if not isinstance(source, Value) or source.shape is None or not parts:
        return False
    return all(p is Ellipsis or p in (slice(None), slice(0, None, None), slice(0, None, 1)) for p in parts)


# --- casts ----------------------------------------------------------------------------------------------------------

_METHOD_DTYPES = {
    "float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16,
}  # fmt: skip
_CAST_KWARGS = {"dtype", "device", "copy", "non_blocking", "memory_format", "layout", "pin_memory", "other"}


def cast_of(view: View, node: fx.Node) -> Value | None:
    """The canonical ``cast`` that a ``to``, ``type``, ``type_as``, ``float``... spells; None where it does more."""
    args, kwargs = node.args, dict(node.kwargs)
    if not args or not isinstance(args[0], fx.Node) or not set(kwargs) <= _CAST_KWARGS:
        return None
    target = str(node.target) if node.op == "call_method" else "to"
    wanted: Any = _METHOD_DTYPES.get(target)
    if target == "type_as" and len(args) == 2 and isinstance(args[1], fx.Node):
        wanted = DtypeOf(args[1])
    elif wanted is None:
        candidates = [*args[1:], kwargs.get("dtype"), kwargs.get("other")]
        dtypes = [c for c in candidates if isinstance(c, torch.dtype | DtypeOf)]
        others = [c for c in candidates if isinstance(c, fx.Node)]
        if len(dtypes) + len(others) > 1:
            return None
        if dtypes:
            wanted = dtypes[0]
        elif others:
            wanted = view.dtype_reference(others[0])
    meta = view.meta(node)
    source = view.meta(args[0])
    if meta is not None and source is not None:
        if meta.device != source.device:
            return None
        wanted = meta.dtype
    elif target != "type" and any(isinstance(c, str | torch.device) for c in (*args[1:], kwargs.get("device"))):
        return None
    if wanted is None:
        return None
    return Value(
        "cast", {"input": args[0], "dtype": wanted}, node, meta=SymbolicMeta(dtype=wanted) if meta is None else meta
    )


@rule("mul", "mul")
def mul_implied_widening(view: View, value: Value) -> Value | None:
    return _implied_widening(view, value)


@rule("add", "add")
def add_implied_widening(view: View, value: Value) -> Value | None:
    return _implied_widening(view, value)


_EXACT = {
    (torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.bfloat16, torch.float64),
    (torch.float16, torch.float64), (torch.float32, torch.float64),
}  # fmt: skip


def _implied_widening(view: View, value: Value) -> Value | None:
    """``w.float() * h``, with ``w`` a weight and ``h`` in fp32 already: promotion does the same exactly."""
    for name, other in (("input", "other"), ("other", "input")):
        cast, sibling = view.operand(value.args[name]), view.operand(value.args[other])
        if not (isinstance(cast, Value) and isinstance(sibling, Value) and cast.op == "cast"):
            continue
        source = view.operand(cast.args["input"])
        if sibling.dtype != cast.dtype or not isinstance(source, Value) or source.leaf is None:
            continue
        if source.leaf.kind not in (LeafKind.PARAMETER, LeafKind.BUFFER):
            continue  # of an activation the pattern itself may hold the cast
        symbolic = view.symbolic and cast.dtype is torch.float32 and source.dtype is not torch.float32
        if sibling.shape == () or not (symbolic or (source.dtype, cast.dtype) in _EXACT):
            continue
        if source is sibling:
            continue
        alone = len(cast.node.users) == 1 or view.symbolic
        return value.become(
            value.op, {**value.args, name: source}, "implied widening cast", cast.nodes if alone else ()
        )
    return None


# --- squares and roots ----------------------------------------------------------------------------------------------


@rule("pow", "square")
def pow_two(view: View, value: Value) -> Value | None:
    if _is_number(value.args["exponent"], 2):
        return value.become("square", {"input": value.args["input"]}, "pow(x, 2) = square(x)")
    return None


@rule("mul", "square")
def product_with_itself(view: View, value: Value) -> Value | None:
    a, b = view.operand(value.args["input"]), view.operand(value.args["other"])
    if isinstance(a, Value) and a is b:
        return value.become("square", {"input": a}, "x * x = square(x)")
    return None


@rule("pow", "sqrt")
def pow_half(view: View, value: Value) -> Value | None:
    if _is_number(value.args["exponent"], 0.5):
        return value.become("sqrt", {"input": value.args["input"]}, "pow(x, 0.5) = sqrt(x)")
    return None


@rule("pow", "rsqrt")
def pow_minus_half(view: View, value: Value) -> Value | None:
    """Last place of fp32 may differ."""
    if _is_number(value.args["exponent"], -0.5):
        return value.become("rsqrt", {"input": value.args["input"]}, "pow(x, -0.5) = rsqrt(x)")
    return None


@rule("reciprocal", "rsqrt")
def reciprocal_of_root(view: View, value: Value) -> Value | None:
    """Last place of fp32 may differ."""
    root = view.operand(value.args["input"])
    if isinstance(root, Value) and root.op == "sqrt" and _is_wide(root):
        return value.become("rsqrt", dict(root.args), "1/sqrt(x) = rsqrt(x)", root.nodes)
    return None


@rule("div", "rsqrt")
def one_over_root(view: View, value: Value) -> Value | None:
    """Last place of fp32 may differ."""
    root = view.operand(value.args["other"])
    plain = "rounding_mode" not in value.args
    if (
        plain
        and _is_number(value.args["input"], 1)
        and isinstance(root, Value)
        and root.op == "sqrt"
        and _is_wide(root)
    ):
        return value.become("rsqrt", dict(root.args), "1/sqrt(x) = rsqrt(x)", root.nodes)
    return None


@rule("div", "mul", parts=("rsqrt",))
def divided_by_root(view: View, value: Value) -> Value | None:
    """``x / sqrt(v)`` is ``x * rsqrt(v)``; last place of fp32 may differ, so lower precisions are left alone."""
    root = view.operand(value.args["other"])
    numerator = view.operand(value.args["input"])
    if "rounding_mode" in value.args or not isinstance(numerator, Value):
        return None
    if not (isinstance(root, Value) and root.op == "sqrt" and _is_wide(root)):
        return None
    factor = value.part("rsqrt", dict(root.args), root.meta)
    product = value.become("mul", {"input": numerator, "other": factor}, "x/sqrt(v) = x*rsqrt(v)", root.nodes)
    factor.owner = product
    return product


@rule("div", "mean")
def sum_over_count(view: View, value: Value) -> Value | None:
    """``x.sum(-1, keepdim=True) / n`` is the mean where n is the size of that dimension."""
    total, count = view.operand(value.args["input"]), value.args["other"]
    if "rounding_mode" in value.args or not (isinstance(total, Value) and total.op == "sum" and _is_wide(total)):
        return None
    source = view.operand(total.args["input"])
    dim = view.dimension(total)
    if not isinstance(source, Value) or source.shape is None or not isinstance(dim, int) or not isinstance(count, int):
        return None
    if not same_size(source.shape[dim], count) or source.dtype != total.dtype:
        return None
    return value.become("mean", dict(total.args), "sum(x)/n = mean(x)", total.nodes)


# --- activations ----------------------------------------------------------------------------------------------------


@rule("mul", "silu")
def times_own_sigmoid(view: View, value: Value) -> Value | None:
    """In low precision the sigmoid is rounded before the product; only fp32 and wider are one function."""
    if not _is_wide(value):
        return None
    for name, other in (("input", "other"), ("other", "input")):
        gate, x = view.operand(value.args[name]), view.operand(value.args[other])
        if isinstance(gate, Value) and gate.op == "sigmoid" and view.operand(gate.args["input"]) is x:
            return value.become("silu", {"input": x}, "x*sigmoid(x) = silu(x)", gate.nodes)
    return None


# --- projections ----------------------------------------------------------------------------------------------------


@rule("matmul", "linear")
def matmul_with_transposed(view: View, value: Value) -> Value | None:
    """``x @ w.t()``, with ``w`` of two dimensions, is ``linear(x, w)``."""
    weight = view.operand(value.args["other"])
    if not isinstance(weight, Value):
        return None
    source = _transposed(view, weight)
    if source is None:
        return None
    x = view.operand(value.args["input"])
    if isinstance(x, Value) and x.shape is not None and len(x.shape) < 1:
        return None
    return value.become("linear", {"input": x, "weight": source}, "x @ w.t() = linear(x, w)", weight.nodes)


def _transposed(view: View, value: Value) -> Value | None:
    """``w``, where the value is its transpose over its only two dimensions."""
    if (
        value.op == "t"
        or (value.op == "transpose" and _dims_are_last_two(value))
        or (value.op == "permute" and tuple(value.args.get("dims", ())) in {(1, 0), (-1, 0), (1, -2), (-1, -2)})
    ):
        source = view.operand(value.args["input"])
    else:
        return None
    if isinstance(source, Value) and (view.symbolic or (source.shape is not None and len(source.shape) == 2)):
        return source
    return None


def _dims_are_last_two(value: Value) -> bool:
    dims = {value.args["dim0"], value.args["dim1"]}
    return dims in ({0, 1}, {-1, -2}, {0, -1}, {1, -2})


# --- splitting ------------------------------------------------------------------------------------------------------


@rule("getitem", "part")
def item_of_split(view: View, value: Value) -> Value | None:
    """One of ``chunk``'s or ``split``'s equal parts, or an equal slice of the last dimension."""
    source, index = view.operand(value.args["input"]), value.args["index"]
    if not isinstance(source, Value):
        return None
    step = "equal parts"
    if source.op in {"chunk", "split"} and isinstance(index, int):
        tensor = view.operand(source.args["input"])
        dim = view.dimension(source)
        if not isinstance(tensor, Value) or dim is None:
            return None
        count = _equal_parts(view, source, tensor, dim)
        if count is None or not -count <= index < count:
            return None
        args = {"input": tensor, "dim": dim, "index": index % count, "of": count}
        return value.become("part", args, step, source.nodes)
    return _slice_of_last(value, source, index)


def _equal_parts(view: View, source: Value, tensor: Value, dim: int) -> int | None:
    size = tensor.shape[dim] if tensor.shape is not None else None
    if source.op == "chunk":
        count = source.args["chunks"]
        exact = view.symbolic or (isinstance(size, int) and size % count == 0 and size >= count)
        return count if exact else None
    wanted = source.args["size"]
    if isinstance(wanted, tuple):
        equal = bool(wanted) and all(same_size(w, wanted[0]) for w in wanted)
        return len(wanted) if equal else None
    if isinstance(size, int) and isinstance(wanted, int) and wanted > 0 and size % wanted == 0:
        return size // wanted
    return None


def _slice_of_last(value: Value, source: Value, index: Any) -> Value | None:
    if source.shape is None or not isinstance(index, tuple) or not index or not isinstance(index[-1], slice):
        return None
    lead = index[:-1]
    if Ellipsis not in lead and len(index) != len(source.shape):
        return None
    if any(i is not Ellipsis and i != slice(None) for i in lead):
        return None
    size, cut = source.shape[-1], index[-1]
    if not isinstance(size, int) or cut.step not in (None, 1):
        return None
    if not all(isinstance(i, int | None) for i in (cut.start, cut.stop)):
        return None
    start, stop, _ = cut.indices(size)
    length = stop - start
    if length <= 0 or length == size or size % length or start % length:
        return None
    args = {"input": source, "dim": -1, "index": start // length, "of": size // length}
    return value.become("part", args, "equal parts")


# --- one node that is a whole norm ----------------------------------------------------------------------------------


@rule("rms_norm", "mul", parts=("cast", "square", "mean", "add", "rsqrt"))
def rms_norm_function(view: View, value: Value) -> Value | None:
    """``F.rms_norm`` computes in fp32, scales, then casts once: the *late* order.

    Without eps it takes that of fp32, whatever the input's dtype (checked on CPU; elsewhere such a norm of a lower
    precision stays opaque).
    """
    x, weight, eps = view.operand(value.args["input"]), value.args.get("weight"), value.args.get("eps")
    shape = value.args["normalized_shape"]
    if not isinstance(x, Value) or weight is None or len(shape) != 1 or view.symbolic:
        return None
    if eps is None and (x.dtype is torch.float32 or (x.device is not None and x.device.type == "cpu")):
        eps = torch.finfo(torch.float32).eps
    if eps is None:
        return None
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16) or x.shape is None:
        return None
    parts: list[Value] = []

    def part(op: str, **args: Any) -> Value:
        made = value.part(op, args, SymbolicMeta(torch.float32, None, x.device))
        parts.append(made)
        return made

    wide = x if x.dtype is torch.float32 else part("cast", input=x, dtype=torch.float32)
    mean = part("mean", input=part("square", input=wide), dim=-1, keepdim=True)
    factor = part("rsqrt", input=part("add", input=mean, other=eps))
    normed = part("mul", input=wide, other=factor)
    step = "rms_norm as its formula"
    if x.dtype is torch.float32:
        out = value.become("mul", {"input": normed, "other": weight}, step)
    else:
        scaled = part("mul", input=normed, other=weight)
        out = value.become("cast", {"input": scaled, "dtype": x.dtype}, step)
    for made in parts:
        made.owner = out
    return out


def _is_wide(value: Value) -> bool:
    """Whether a further rounding is one of fp32 or finer: lower precisions keep every one where it is written."""
    return value.dtype in (torch.float32, torch.float64) or isinstance(value.meta, SymbolicMeta)


def _is_number(operand: Any, number: float) -> bool:
    return isinstance(operand, int | float) and not isinstance(operand, bool) and operand == number
