"""One compiled block for all: results, gradients, buffers and random numbers are those of the graph as a whole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reuse.stacks import HIDDEN, Block, Stack, compiled, copies, last, rms, rows
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

import fxfuse
from fxfuse.reuse import running
from fxfuse.reuse.segments import Segment, _gradient_comes_from_inside


def both(model: nn.Module, *args: Any, grad: bool, calls: int = 2, inner: str = "aot_eager", **options: Any) -> None:
    """Assert that eager and compiled agree in results, gradients (of the input, too) and buffers, call after call."""
    model.zero_grad()
    other = copy.deepcopy(model)
    fast = compiled(other, inner, **options)
    for call in range(calls):
        outcomes = []
        for run, owner in ((model, model), (fast, other)):
            given = [a.clone().requires_grad_(grad and a.is_floating_point()) for a in args]
            torch.manual_seed(call)
            with torch.set_grad_enabled(grad):
                result = run(*given)
            results = result if isinstance(result, tuple | list) else [result]
            if grad:
                sum(r.float().square().mean() for r in results if r.requires_grad).backward()
            asked = [r.requires_grad for r in results]
            outcomes.append((results, asked, [p.grad for p in (*owner.parameters(), *given)], list(owner.buffers())))
        for found, expected in zip(outcomes[1], outcomes[0], strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        for found, expected in zip(outcomes[1][0], outcomes[0][0], strict=True):
            assert found.stride() == expected.stride()


GRAD = pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])


def in_place(block: Block, x: Tensor) -> Tensor:
    return x.clone().add_(1.0).mul_(torch.sigmoid(x.detach()))


def noted(block: Block, x: Tensor) -> Tensor:
    block.calls.add_(1)
    return x + block.calls


def cached(block: Block, x: Tensor) -> Tensor:
    block.cache.index_copy_(1, torch.tensor([2]), x[:, :1].detach())
    return x + block.cache.mean()


def cached_by_index(block: Block, x: Tensor) -> Tensor:
    block.cache[:, 3] = x[:, 0].detach()
    return x + block.cache.sum(1, keepdim=True)


def without_grad(block: Block, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.abs().amax(-1, keepdim=True)
    return x / (1 + scale)


def own_autocast(block: Block, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.tanh(x) @ torch.tanh(x).transpose(-1, -2)
    return x + y.float().mean(-1, keepdim=True)


def views(block: Block, x: Tensor) -> Tensor:
    a, b = (x.mean(1, keepdim=True).expand_as(x) + x).chunk(2, -1)
    return torch.cat([b, a], -1).transpose(1, 2).contiguous().transpose(1, 2)


def random(block: Block, x: Tensor) -> Tensor:
    return x + torch.rand_like(x) * 0.1


TWISTS = [None, in_place, noted, cached, cached_by_index, without_grad, own_autocast, views, random]


@GRAD
@pytest.mark.parametrize("twist", TWISTS, ids=[getattr(t, "__name__", "plain") for t in TWISTS])
def test_what_a_block_may_do(twist: Callable[..., Tensor] | None, grad: bool) -> None:
    model = Stack(6, twist)
    for i, layer in enumerate(model.layers):
        layer.register_buffer("calls", torch.tensor(float(i)))
        layer.register_buffer("cache", torch.full((2, 8, HIDDEN), float(i)))
    both(model, rows(), grad=grad)
    assert copies(), last().reason


@GRAD
def test_dropout_draws_anew_in_each_copy(grad: bool) -> None:
    both(Stack(6, dropout=0.3).train(), rows(), grad=grad)
    assert sum(copies()) >= 5


def test_dropout_of_two_copies_differs() -> None:
    model = Stack(6, dropout=0.5).train().requires_grad_(False)
    for layer in model.layers[1:]:
        layer.load_state_dict(model.layers[0].state_dict())
    fast = compiled(model)
    torch.manual_seed(3)
    one, two = fast(rows()), fast(rows())
    assert not torch.allclose(one, two)


class Shared(Stack):
    """All layers have one query weight; one of them uses it for its keys, too."""

    def __init__(self) -> None:
        super().__init__(7)
        for layer in self.layers[1:]:
            layer.q = self.layers[0].q
        self.layers[3].k.weight = self.layers[0].q.weight


def test_tied_weights() -> None:
    both(Shared(), rows(), grad=True)
    assert copies()


def test_frozen_layers_are_another_region_in_training_only() -> None:
    model = Stack(8)
    model.layers[:3].requires_grad_(False)
    both(model, rows(), grad=True)
    assert sum(copies()) >= 6  # a layer between the two sorts is frozen in part
    torch._dynamo.reset()
    both(model, rows(), grad=False)
    assert copies() == [8]


class Positions(Stack):
    """A value that every layer reads, and a mask of the caller's."""

    def forward(self, x: Tensor) -> Tensor:
        cos = torch.cos(torch.arange(x.shape[1], dtype=x.dtype))[None, None, :, None]
        for layer in self.layers:
            x = layer(x, cos)
        return rms(x, self.last)


@GRAD
def test_a_value_read_by_every_layer(grad: bool) -> None:
    both(Positions(), rows(), grad=grad)
    assert sum(copies()) >= 5


@GRAD
def test_dynamic_shapes_make_no_more_graphs(grad: bool) -> None:
    model = Positions()
    fast = compiled(model)
    for count in (5, 7, 9):
        with torch.set_grad_enabled(grad):
            found, expected = fast(rows(count)), model(rows(count))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        if grad:
            a = torch.autograd.grad(found.sum(), model.layers[2].q.weight)
            b = torch.autograd.grad(expected.sum(), model.layers[2].q.weight)
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert sum(copies()) >= 4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # the first size, and all others


def test_symbolic_floats_are_left_whole() -> None:
    model = Stack(4).requires_grad_(False)  # under `dynamic=True` each block's dropout is one
    backend = fxfuse.Backend(inner="aot_eager", on_error="raise", on_miss="silent")
    torch.testing.assert_close(torch.compile(model, backend=backend, dynamic=True)(rows()), model(rows()))
    assert "is no tensor, and is read behind it" in last().reason


class Residual(Stack):
    """The residual stream is written in place, across what could be a border."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        for layer in self.layers:
            x += torch.tanh(layer(x))
        return rms(x, self.last)


class Row(Stack):
    """A row of the stream is overwritten in each layer, through a view made before the first."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        row = x[:, 0]
        for layer in self.layers:
            y = layer(x)
            row.copy_(y[:, 1])
            x = x + y
        return x + row[:, None]


class Given(Stack):
    """The caller's tensor is written in place, and read by every layer."""

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            seen.add_(x.detach().mean())
            x = x + seen
        return x


class Returns(Stack):
    """Returned: its input, a view of it, each layer's result, one of them twice, and a view of one."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        kept, given = [], x
        for layer in self.layers:
            x = layer(x)
            kept.append(x)
        return given, given[0], *kept, kept[1], kept[2].transpose(0, 1), rms(x, self.last)


class Swapped(Stack):
    """Two streams through each layer, exchanged in every second one."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.flip(1)
        for i, layer in enumerate(self.layers):
            x, y = (layer(x) - 0.5 * y, x) if i % 2 else (layer(y) - 0.5 * x, y)
        return x + y


class Later(Stack):
    """The first layer's result is added in every later one."""

    def forward(self, x: Tensor) -> Tensor:
        first = None
        for layer in self.layers:
            x = layer(x)
            first = x if first is None else first
            x = x + first.transpose(1, 2).contiguous().transpose(1, 2)
        return x


@GRAD
@pytest.mark.parametrize("model", [Returns, Swapped, Later])
def test_what_may_cross_a_border(model: type[Stack], grad: bool) -> None:
    both(model(8), rows(), grad=grad)
    assert copies()


@pytest.mark.parametrize("model", [Residual, Row])
def test_what_is_written_across_every_border_is_left_whole(model: type[Stack]) -> None:
    both(model(6), rows(), grad=False)
    assert "written behind it" in last().reason


@GRAD
def test_the_callers_tensor_is_written(grad: bool) -> None:
    model = Given(8)
    fast, seen, expected = compiled(model), torch.zeros(()), torch.zeros(())
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            torch.testing.assert_close(fast(rows(), seen), model(rows(), expected), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)
    # a region may save it for backward, and a later one writes to it
    assert "would be used before it" in last().reason if grad else copies()


class Windows(Stack):
    """Each layer writes its part of one buffer, of which it has a view as a buffer of its own."""

    def __init__(self, layers: int = 6) -> None:
        super().__init__(layers, noted)
        whole = torch.zeros(layers)
        for i, layer in enumerate(self.layers):
            layer.register_buffer("calls", whole[i])


def test_buffers_of_one_storage_are_left_whole_where_written() -> None:
    model, fast_model = Windows(), Windows()
    fast_model.load_state_dict(model.state_dict())
    fast = compiled(fast_model)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fast(rows()), model(rows()), atol=1e-5, rtol=1e-5)
    assert "share memory" in last().reason


class Checkpointed(Stack):
    """Each layer is computed again in backward."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return x


@GRAD
def test_activation_checkpointing(grad: bool) -> None:
    both(Checkpointed(8), rows(), grad=grad)
    assert sum(copies()) >= 6


def test_a_checkpoint_with_dropout_is_left_whole_in_training() -> None:
    compiled(Checkpointed(5, dropout=0.2).train())(rows())
    assert "random numbers again" in last().reason


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_around_the_call(dtype: torch.dtype) -> None:
    model = Stack(6).requires_grad_(False)
    fast = compiled(model)
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(fast(rows()), model(rows()), atol=0, rtol=0)
    assert copies() == [6]


def test_inference_mode() -> None:
    model = Stack(6)
    fast = compiled(model)
    with torch.inference_mode():
        torch.testing.assert_close(fast(rows()), model(rows()), atol=1e-5, rtol=1e-5)
    assert copies() == [6]


def test_another_model_of_the_same_class_keeps_its_own_weights() -> None:
    first, second = Stack(6).requires_grad_(False), Stack(6).requires_grad_(False)
    fast = compiled(Stack.forward)
    for model in (first, second, first):
        torch.testing.assert_close(fast(model, rows()), model(rows()), atol=1e-5, rtol=1e-5)


def test_new_weights_are_seen() -> None:
    model = Stack(6).requires_grad_(False)
    fast = compiled(model)
    fast(rows())
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    torch.testing.assert_close(fast(rows()), model(rows()), atol=1e-5, rtol=1e-5)


def test_intermediates_die_with_their_last_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    real = running._picker

    def watching(places: Any) -> Any:
        pick = real(places)

        def picked(values: Any) -> Any:
            held.append(sum(isinstance(value, Tensor) for value in values))
            return pick(values)

        return picked

    monkeypatch.setattr(running, "_picker", watching)
    compiled(Stack(6).requires_grad_(False))(rows())
    assert len(held) == 8  # the stretch before the layers, six layers, the results
    assert max(held) - min(held) <= 2


class Masked(Stack):
    """Each layer's length is read behind it where no gradient comes back; the slope of the root is infinite at zero."""

    def __init__(self, layers: int, outside: int | None) -> None:
        super().__init__(layers)
        self.outside = outside

    def forward(self, x: Tensor) -> Tensor:
        extra: Any = 0.0
        for i, layer in enumerate(self.layers):
            length = (x * 0.0).pow(2).sum(-1, keepdim=True).sqrt()
            if i == self.outside:
                extra = length.detach().mean()
            x = layer(x) * (length == 0)
        return x + extra


@pytest.mark.parametrize("outside", [None, 2])
def test_no_gradient_is_not_a_gradient_of_zero(outside: int | None) -> None:
    model = Masked(6, outside)
    x, y = rows().requires_grad_(), rows().requires_grad_()
    weights = [p for name, p in model.named_parameters() if name != "last"]
    found = torch.autograd.grad(compiled(model)(x).square().mean(), [x, *weights])
    expected = torch.autograd.grad(model(y).square().mean(), [y, *weights])
    assert all(bool(gradient.isfinite().all()) for gradient in found)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def _with_memory(x: Tensor) -> Tensor:
    return x * 1.0


_with_memory.__module__ = "somebody"


def test_functions_that_are_not_known_are_left_whole() -> None:
    torch._dynamo.allow_in_graph(_with_memory)
    model = Stack(6, lambda block, x: _with_memory(x)).requires_grad_(False)
    both(model, rows(), grad=False)
    assert not copies()
    assert "_with_memory" in last().reason


def test_strides_are_those_that_were_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """An inner compiler may lay a result out as it likes; the next region was compiled for the strides of eager."""
    real = running._compile

    def laid_otherwise(kind: Any, *rest: Any) -> Callable[..., Any]:
        call = real(kind, *rest)
        promised = [read.meta["example_value"].stride() for read in kind.first.reads]

        def run(*args: Any) -> Any:
            assert [arg.stride() for arg in args] == promised
            return tuple(F.pad(value, (0, 0, 2, 2))[..., 2:-2, :] for value in call(*args))

        return run

    monkeypatch.setattr(running, "_compile", laid_otherwise)
    model = Stack(6).requires_grad_(False)
    torch.testing.assert_close(compiled(model)(rows()), model(rows()), atol=1e-5, rtol=1e-5)
    assert sum(copies()) >= 5


def test_the_last_layer_is_like_the_others_in_training() -> None:
    both(Stack(6), rows(), grad=True, calls=1)
    assert copies() == [6]


def _read(graph: fx.Graph, name: str) -> fx.Node:
    return next(node for node in graph.nodes if node.name == name)


@pytest.mark.parametrize(
    ("reads", "inside"),
    [
        (lambda x, y: x * y, True),
        (lambda x, y: y.expand_as(x), False),  # its shape alone
        (lambda x, y: torch.where(y > 0, x, 0.0), False),  # no gradient goes through it
        (lambda x, y: y.mul_(x), False),
    ],
    ids=["mul", "expand_as", "where", "mul_"],
)
def test_whether_a_gradient_comes_from_inside(reads: Any, inside: bool) -> None:
    graph = fx.symbolic_trace(lambda x, y: reads(x.exp(), y)).graph
    nodes = tuple(node for node in graph.nodes if node.op != "output" and node.name != "y")
    grads = {node for node in nodes if node.name != "gt"}
    made = Segment(nodes, (), (len(nodes) - 1,))
    assert (_read(graph, "exp") in _gradient_comes_from_inside(made, grads)) == inside
