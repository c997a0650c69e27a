"""What a graph writes, which of its values share storage, and which switches it throws."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import capture, rows
from torch import fx
from torch._higher_order_ops.triton_kernel_wrap import triton_kernel_wrapper_mutation
from torch.utils.checkpoint import checkpoint

from fxfuse.view import View
from fxfuse.view.effects import Effects


def _scale_in_place(x: torch.Tensor) -> None:
    x.mul_(2)


def set_first_row(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x[0] = y[0]
    return x + y


def written(function: Callable[..., Any]) -> set[str]:
    """The inputs that the view holds for written when Dynamo captures ``function(x, y)``."""
    gm, examples = capture(function, rows(2, 8), rows(2, 8, seed=1))
    view = View(gm.graph, examples)
    holders = gm.graph.find_nodes(op="placeholder")
    return {view.value(n).leaf.path for n in holders if view.effects.is_written(n)}  # type: ignore[union-attr]


WRITES: dict[str, Callable[..., Any]] = {
    "method": lambda x, y: (x.add_(y), x + y)[1],
    "operator": lambda x, y: (operator.iadd(x, y), x + y)[1],
    "setitem": set_first_row,
    "out": lambda x, y: torch.add(y, 1, out=x) + y,
    "function with underscore": lambda x, y: torch.relu_(x) + y,
    "inplace keyword": lambda x, y: F.silu(x, inplace=True) + y,
    "inplace position": lambda x, y: F.silu(x, True) + y,
    "inplace position, op outside the table": lambda x, y: F.elu(x, 1.0, True) + y,
    "overload": lambda x, y: torch.ops.aten.add_.Tensor(x, y) + y,
    "overload with out": lambda x, y: torch.ops.aten.add.out(y, y, out=x) + y,
    "foreach": lambda x, y: (torch._foreach_add_([x], [y]), x + y)[1],
    "copy_": lambda x, y: x.copy_(y) + y,
    "fill_ through slice": lambda x, y: (x[:, :4].fill_(1), x + y)[1],
    "through unbind": lambda x, y: (x.unbind(0)[1].mul_(2), x + y)[1],
    "through select": lambda x, y: (x.select(0, 1).mul_(2), x + y)[1],
    "through T": lambda x, y: (x.T.mul_(2), x + y)[1],
    "through movedim": lambda x, y: (x.movedim(0, 1).mul_(2), x + y)[1],
    "through detach": lambda x, y: (x.detach().mul_(2), x + y)[1],
    "through expand": lambda x, y: (x.expand(2, 8).mul_(2), x + y)[1],
    "through chunk": lambda x, y: (x.chunk(2, -1)[0].mul_(2), x + y)[1],
    "through split": lambda x, y: (torch.split(x, [3, 5], -1)[1].mul_(2), x + y)[1],
    "through unsqueeze": lambda x, y: (x.unsqueeze(0).mul_(2), x + y)[1],
    "through no-op cast": lambda x, y: (x.float().mul_(2), x + y)[1],
    "inside a checkpoint": lambda x, y: checkpoint(lambda t: t.mul_(2) + 1, x, use_reentrant=False) + y,
}

NONE: dict[str, Callable[..., Any]] = {
    "pure": lambda x, y: F.silu(x) * y,
    "write to a result": lambda x, y: (x + y).mul_(2),
    "write to a clone": lambda x, y: x.clone().mul_(2) + y,
    "methods that end in no single underscore": lambda x, y: x.__mul__(y).__add__(y),
    "pure checkpoint": lambda x, y: checkpoint(lambda t: t * 2, x, use_reentrant=False) + y,
}


@pytest.mark.parametrize("function", [pytest.param(f, id=name) for name, f in WRITES.items()])
def test_a_write_is_seen_and_only_there(function: Callable[..., Any]) -> None:
    assert "x" in written(function)
    assert "y" not in written(function)


@pytest.mark.parametrize("function", [pytest.param(f, id=name) for name, f in NONE.items()])
def test_what_writes_no_input(function: Callable[..., Any]) -> None:
    assert written(function) == set()


# --- graphs that Dynamo would not give ------------------------------------------------------------------------------


def one_call(target: Any, *args: Any, op: str = "call_function", **kwargs: Any) -> tuple[Effects, fx.Node, fx.Node]:
    """A bare graph without example values: ``target(x, ...)``, where strings name the two placeholders."""
    graph = fx.Graph()
    held = {"x": graph.placeholder("x"), "y": graph.placeholder("y")}
    lookup = lambda a: held.get(a, a) if isinstance(a, str) else a  # noqa: E731
    given = tuple([lookup(i) for i in a] if isinstance(a, list) else lookup(a) for a in args)
    named = {k: {n: lookup(v) for n, v in a.items()} if isinstance(a, dict) else lookup(a) for k, a in kwargs.items()}
    graph.output(graph.create_node(op, target, given, named))
    return Effects(graph), held["x"], held["y"]


def foreign(*args: Any) -> Any:
    """A function of a library that fxfuse knows nothing of."""
    return args[0]


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "x_written", "y_written"),
    [
        pytest.param(foreign, ("x", "y"), {}, True, True, id="foreign function"),
        pytest.param(foreign, (["x"], 1), {}, True, False, id="foreign function, in a list"),
        pytest.param(foreign, (), {"first": "x"}, True, False, id="foreign function, by keyword"),
        pytest.param(torch.ops.aten.add_.Tensor, ("x", "y"), {}, True, False, id="in-place overload"),
        pytest.param(torch.ops.aten.add.out, ("y", "y"), {"out": "x"}, True, False, id="out overload"),
        pytest.param(torch.ops.aten.add.Tensor, ("x", "y"), {}, False, False, id="pure overload"),
        pytest.param(operator.getitem, ("x", 0), {}, False, False, id="getitem"),
        pytest.param(operator.setitem, ("x", 0, "y"), {}, True, False, id="setitem"),
        pytest.param(operator.imul, ("x", "y"), {}, True, False, id="imul"),
        pytest.param(torch._foreach_mul_, (["x"], 2.0), {}, True, False, id="foreach"),
        pytest.param(
            triton_kernel_wrapper_mutation,
            (),
            {"kernel_idx": 0, "kwargs": {"in_ptr": "x"}},
            True,
            False,
            id="Triton kernel",
        ),
        pytest.param(
            torch.ops.higher_order.cond, ("x", None, None, ["y"]), {}, True, True, id="unread higher-order op"
        ),
    ],
)
def test_targets(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], x_written: bool, y_written: bool) -> None:
    effects, x, y = one_call(target, *args, **kwargs)
    assert (effects.is_written(x), effects.is_written(y)) == (x_written, y_written)


@pytest.mark.parametrize(
    ("method", "x_written"),
    [
        ("add_", True),
        ("__setitem__", True),
        ("__iadd__", True),
        ("__imul__", True),
        ("zero_", True),
        ("copy_", True),
        ("add", False),
        ("__add__", False),
        ("requires_grad_", False),
        ("__getitem__", False),
        ("size", False),
    ],
)
def test_methods(method: str, x_written: bool) -> None:
    effects, x, y = one_call(method, "x", "y", op="call_method")
    assert (effects.is_written(x), effects.is_written(y)) == (x_written, False)


def test_a_custom_op_that_mutates() -> None:
    torch.library.custom_op("fxfuse_tests::scale_in_place", mutates_args={"x"})(_scale_in_place)
    assert written(lambda x, y: (torch.ops.fxfuse_tests.scale_in_place(x), x + y)[1]) == {"x"}
    effects, x, _ = one_call(torch.ops.fxfuse_tests.scale_in_place, "x")
    assert effects.is_written(x), "an overload packet"


def test_autocast_is_open_only_between_its_switches() -> None:
    def body(x: torch.Tensor) -> Any:
        before = torch.sin(x)
        with torch.autocast("cpu", torch.bfloat16):
            inside = torch.cos(x)
        return before, inside, torch.tan(x)

    gm, _ = capture(body, rows())
    effects = Effects(gm.graph)
    at = {n.target: n for n in gm.graph.nodes if n.op == "call_function"}
    assert [effects.under_autocast(at[f]) for f in (torch.sin, torch.cos, torch.tan)] == [False, True, False]


# --- views, without a storage to go by --------------------------------------------------------------------------------

VIEWS: dict[str, tuple[Any, ...]] = {
    "transpose": (torch.transpose, 0, 1), "swapaxes": (torch.swapaxes, 0, 1), "t": (torch.t,),
    "permute": (torch.permute, (1, 0)), "movedim": (torch.movedim, 0, 1), "moveaxis": (torch.moveaxis, 0, 1),
    "reshape": (torch.reshape, (4, 4)), "flatten": (torch.flatten,), "unflatten": (torch.unflatten, -1, (2, 4)),
    "broadcast_to": (torch.broadcast_to, (2, 8)), "unsqueeze": (torch.unsqueeze, 0), "squeeze": (torch.squeeze,),
    "narrow": (torch.narrow, 0, 0, 1), "select": (torch.select, 0, 0), "getitem": (operator.getitem, (..., slice(4))),
    "chunk": (torch.chunk, 2), "split": (torch.split, 1), "tensor_split": (torch.tensor_split, 2),
    "unbind": (torch.unbind,), "detach": (torch.detach,), "view_as_real": (torch.view_as_real,),
    "view_as_complex": (torch.view_as_complex,), "inactive dropout": (F.dropout, 0.0, False),
}  # fmt: skip
METHODS = {
    "view": (4, 4), "view_as": (), "expand_as": (), "reshape_as": (), "expand": (2, 8), "contiguous": (), "to": (),
    "float": (), "type_as": (), "unflatten": (-1, (2, 4)), "swapdims": (0, 1), "broadcast_to": ((2, 8),), "bool": (),
}  # fmt: skip


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("by_keyword", [False, True])
def test_the_result_of_a_view_is_one_storage_with_its_input(name: str, by_keyword: bool) -> None:
    target, *more = VIEWS[name]
    if by_keyword and target is operator.getitem:
        return
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = graph.call_function(target, tuple(more) if by_keyword else (x, *more), {"input": x} if by_keyword else {})
    effects = Effects(graph)
    assert effects.family(made) is effects.family(x)


@pytest.mark.parametrize("name", METHODS)
def test_the_result_of_a_view_method_is_one_storage_with_its_input(name: str) -> None:
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    made = graph.call_method(name, (x, *(METHODS[name] or (y,))))
    effects = Effects(graph)
    assert effects.family(made) is effects.family(x)


def test_an_einsum_of_one_tensor_may_be_a_view() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = graph.call_function(torch.einsum, ("ij->ji", x))
    effects = Effects(graph)
    assert effects.family(made) is effects.family(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: (torch.unflatten(x, -1, (2, 4)).mul_(2), x + y)[1],
        lambda x, y: (torch.einsum("ij->ji", x).mul_(2), x + y)[1],
        lambda x, y: (F.relu6(x, True), x + y)[1],
        lambda x, y: (F.leaky_relu(x, 0.1, True), x + y)[1],
        lambda x, y: (torch.clamp(y, min=0, out=x), x + y)[1],
    ],
)
def test_new_rows_of_the_table_write_and_alias(function: Callable[..., Any]) -> None:
    assert "x" in written(function)
    assert "y" not in written(function)
