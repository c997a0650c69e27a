"""Graphs that lie in wait: each would be computed wrongly, crash or leak, and stands beside a twin that must fuse."""

from __future__ import annotations

import copy
import functools
import gc
import sys
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import HIDDEN, INTER, PATTERN, compiled, mlp, options, plain, rms, rows, sites, sole
from support import Net as _Net
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

import fxfuse
from fxfuse import Dim, Input
from fxfuse.kernels import registry

D = Dim("d")


class Net(nn.Module):
    """Only the parameters that a site has, so that every one of them gets a gradient."""

    def __init__(self, body: Callable[..., Any], *, grad: bool = False, **more: Any) -> None:
        super().__init__()
        full = _Net(body)
        for name in ("weight", "gate", "up", "down"):
            setattr(self, name, nn.Parameter(getattr(full, name).detach().clone(), requires_grad=grad))
        for name, value in more.items():
            setattr(self, name, value)
        self.body = body

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(self, x)


def scaled(m: Any, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The rest of the site, where its statistics are known."""
    return mlp(m, m.weight * (x * torch.rsqrt(v + 1e-6)))


def square_mean(x: torch.Tensor) -> torch.Tensor:
    return x.pow(2).mean(-1, keepdim=True)


def between(act: Callable[[Any, torch.Tensor], Any]) -> Callable[..., Any]:
    """The site on x, with something done after its statistics and before its scale."""

    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        v = square_mean(x)
        act(m, x)
        return scaled(m, x, v)

    return body


def assert_mutation(report: Any) -> None:
    site = sole(report.sites)
    assert (site.outcome, site.code) == ("missed", "MUTATION"), str(report)


def assert_rewritten(report: Any, count: int = 1) -> None:
    assert report.rewritten[PATTERN] == count, str(report)


# --- grad mode at the site, not around the compile ------------------------------------------------------------------


def under_enable_grad(m: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        return plain(m, x)


def after_a_break(m: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        torch._dynamo.graph_break()
        return plain(m, x)


def in_a_checkpoint(m: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        return checkpoint(functools.partial(plain, m), x, use_reentrant=False)


def grads_of(model: nn.Module, x: torch.Tensor, call: Callable[..., Any]) -> dict[str, Any]:
    with torch.no_grad():
        y = call(x)
    y.sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("body", "weights", "inner"),
    [
        (under_enable_grad, "share", "eager"),
        (under_enable_grad, "copy", "eager"),
        (under_enable_grad, "auto", "eager"),
        (under_enable_grad, "share", "aot_eager"),
        (after_a_break, "share", "eager"),
        (after_a_break, "copy", "aot_eager"),
        (in_a_checkpoint, "share", "aot_eager"),
    ],
)
def test_grad_mode_inside_the_graph_decides_about_gradients(body: Any, weights: str, inner: str) -> None:
    model = Net(body, grad=True)
    twin = copy.deepcopy(model)
    backend = fxfuse.Backend(
        inner=inner, patterns=[PATTERN], weights=weights, extra_memory=9.0, on_error="raise", on_miss="silent"
    )
    got = grads_of(model, rows(), torch.compile(model, backend=backend))
    want = grads_of(twin, rows(), twin)
    assert all(g is not None for g in want.values())
    assert fxfuse.reports()[-1].rewritten[PATTERN] == 1
    for name, grad in want.items():
        assert got[name] is not None, f"{name} lost its gradient"
        torch.testing.assert_close(got[name], grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("body", "kept"), [(under_enable_grad, True), (plain, False)])
def test_a_kernel_without_backward_is_not_taken_where_grad_is_enabled_inside(body: Any, kept: bool) -> None:
    name = "no_backward_here"

    @fxfuse.kernel(PATTERN, name=name)
    def of_this_test(x: Any, weight: Any, gate: Any, up: Any, down: Any, *, eps: Any, norm: str, act: str) -> Any:
        h = weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))
        return F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down).detach()

    try:
        model = Net(body, grad=True)
        backend = fxfuse.Backend(**options(inner="eager", kernels={PATTERN: [name, "plain"]}))
        with torch.no_grad():
            y = torch.compile(model, backend=backend)(rows())
        (site,) = fxfuse.reports()[-1].sites
        assert site.kernel == ("plain" if kept else name)
        assert y.requires_grad is kept
    finally:
        registry._REGISTRY[PATTERN] = [k for k in registry._REGISTRY[PATTERN] if k.name != name]


@pytest.mark.parametrize("weights", ["share", "copy"])
def test_without_grad_the_weights_are_placed_as_asked(weights: str) -> None:
    """The twin: the same compile where nothing enables grad."""
    model = Net(plain, grad=True)
    want = model(rows()).detach()
    with torch.no_grad():
        backend = fxfuse.Backend(inner="eager", patterns=[PATTERN], weights=weights, extra_memory=9.0)
        torch.testing.assert_close(torch.compile(model, backend=backend)(rows()), want)
    (site,) = fxfuse.reports()[-1].sites
    assert (site.outcome, site.weights) == ("rewritten", weights)


# --- functions that write without saying so -------------------------------------------------------------------------


def embedding(m: Any, x: torch.Tensor, max_norm: float | None) -> torch.Tensor:
    h = rms(m, x)
    g = F.linear(h, m.gate)
    F.embedding(torch.tensor([0, 1]), m.gate, max_norm=max_norm)
    return F.linear(F.silu(g) * F.linear(h, m.up), m.down)


def embedding_bag(m: Any, x: torch.Tensor, max_norm: float | None) -> torch.Tensor:
    h = rms(m, x)
    g = F.linear(h, m.gate)
    F.embedding_bag(torch.tensor([[0, 1]]), m.gate, max_norm=max_norm)
    return F.linear(F.silu(g) * F.linear(h, m.up), m.down)


@pytest.mark.parametrize("function", [embedding, embedding_bag])
def test_an_embedding_with_max_norm_writes_its_table(function: Any) -> None:
    assert_mutation(compiled(Net(functools.partial(function, max_norm=0.1)), rows()))
    assert_rewritten(compiled(Net(functools.partial(function, max_norm=None)), rows()))


@pytest.mark.parametrize("op", ["F.batch_norm", "torch.batch_norm", "F.instance_norm"])
def test_a_norm_in_training_writes_its_running_statistics(op: str) -> None:
    def body(m: Any, x: torch.Tensor, name: str) -> torch.Tensor:
        h = m.weight * (x * torch.rsqrt(square_mean(x) + 1e-6))
        wide, mean = x.reshape(-1, HIDDEN) + 3, getattr(m, name)
        if op == "F.batch_norm":
            F.batch_norm(wide, mean, m.var, training=True, momentum=0.9)
        elif op == "torch.batch_norm":
            torch.batch_norm(wide, None, None, mean, m.var, True, 0.9, 1e-5, False)
        else:
            F.instance_norm(wide.T[None].repeat(2, 1, 1), mean, m.var, use_input_stats=True, momentum=0.9)
        return mlp(m, h)

    def net(name: str) -> Net:
        buffers = {key: nn.Parameter(torch.ones(HIDDEN), requires_grad=False) for key in ("mean", "var")}
        return Net(functools.partial(body, name=name), **buffers)

    assert_mutation(compiled(net("weight"), rows()))
    assert_rewritten(compiled(net("mean"), rows()))


# --- an op that hands back its own input ----------------------------------------------------------------------------

SAME_TENSOR: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "nn.Dropout in eval": lambda m, x: m.drop(x),
    "F.dropout, eval": lambda m, x: F.dropout(x, 0.5, False),
    "torch.dropout, eval": lambda m, x: torch.dropout(x, 0.1, False),
}


@pytest.mark.parametrize("same", [pytest.param(f, id=name) for name, f in SAME_TENSOR.items()])
def test_inactive_dropout_is_the_tensor_itself(same: Any) -> None:
    def body(m: Any, x: torch.Tensor, write: bool) -> torch.Tensor:
        y = same(m, x)
        v = square_mean(y)
        (x if write else x.clone()).add_(1)
        return scaled(m, y, v)

    net = functools.partial(Net, drop=nn.Dropout(0.1))
    assert_mutation(compiled(net(functools.partial(body, write=True)).eval(), rows()))
    assert_rewritten(compiled(net(functools.partial(body, write=False)).eval(), rows()))


def test_a_weight_is_written_through_its_inactive_dropout() -> None:
    def body(m: Any, x: torch.Tensor, write: bool) -> torch.Tensor:
        y = F.dropout(m.gate, 0.1, False)
        h = rms(m, x)
        (y if write else y.clone()).add_(1.0)
        return mlp(m, h)

    assert_mutation(compiled(Net(functools.partial(body, write=True)), rows()))
    assert_rewritten(compiled(Net(functools.partial(body, write=False)), rows()))


# --- opaque functions in modules with names like torch's ------------------------------------------------------------


@pytest.fixture
def opaque() -> Iterator[Callable[[str, str], Callable[..., Any]]]:
    """Makes a function that Dynamo leaves as one node of the graph, defined in a module of that name."""
    made: list[str] = []

    def make(name: str, expression: str) -> Callable[..., Any]:
        module = types.ModuleType(name)
        sys.modules[name] = module
        made.append(name)
        exec(f"def opaque(t):\n    return {expression}\n", module.__dict__)
        function: Callable[..., Any] = torch._dynamo.allow_in_graph(module.__dict__["opaque"])
        return function

    yield make
    for name in made:
        del sys.modules[name]


@pytest.mark.parametrize("module", ["torch_like_package", "mathematics", "operators", "builtins_of_mine", "fxfuser"])
def test_an_opaque_function_may_write_whatever_its_module_is_called(opaque: Any, module: str) -> None:
    write = opaque(module, "t.mul_(2)")
    assert_mutation(compiled(Net(between(lambda m, x: write(x))), rows()))


def test_an_opaque_function_elsewhere_costs_nothing(opaque: Any) -> None:
    write = opaque("torch_like_package", "t.mul_(2)")
    assert_rewritten(compiled(Net(lambda m, x: plain(m, x) + write(torch.ones(1))), rows()))


# --- graphs that did not come from Dynamo ---------------------------------------------------------------------------


class Recorder(fx.Interpreter):
    """Keeps each node's real result in its meta, as some capture tools do."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["val"] = result
        return result


def traced(model: nn.Module) -> fx.GraphModule:
    gm = fx.symbolic_trace(model)
    Recorder(gm).run(rows())
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            node.meta["val"] = functools.reduce(getattr, node.target.split("."), gm)
    return gm


def rewritten_in_place(model: nn.Module) -> Any:
    """Rewrite a symbolic trace; the numbers must stay the model's."""
    gm = traced(model)
    report = fxfuse.rewrite(gm, options=options())
    torch.testing.assert_close(gm(rows()), model(rows()))
    return report


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: torch.select(x, 0, 0), id="select"),
        pytest.param(lambda x: torch.unbind(x)[0], id="unbind"),
        pytest.param(lambda x: torch.diagonal(x), id="diagonal"),
        pytest.param(lambda x: torch.as_strided(x, (4,), (1,)), id="as_strided"),
        pytest.param(lambda x: x.movedim(0, 1), id="movedim"),
    ],
)
def test_views_by_unknown_ops_are_known_by_their_storage(view: Any) -> None:
    assert_mutation(rewritten_in_place(Net(between(lambda m, x: view(x).add_(5)))))
    assert_rewritten(rewritten_in_place(Net(between(lambda m, x: view(x).clone().add_(5)))))


@pytest.mark.parametrize(
    ("module", "writes"), [(nn.ReLU(inplace=True), True), (nn.Hardtanh(inplace=True), True), (nn.ReLU(), False)]
)
def test_a_called_module_may_write_its_input(module: nn.Module, writes: bool) -> None:
    model = Net(between(lambda m, x: m.act(x)), act=module)
    report = rewritten_in_place(model)
    (assert_mutation if writes else assert_rewritten)(report)


def test_a_called_module_outside_the_site_costs_nothing() -> None:
    model = Net(lambda m, x: m.act(plain(m, x)), act=nn.ReLU(inplace=True))
    assert_rewritten(rewritten_in_place(model))


def on_dict(m: Any, a: torch.Tensor, *, d: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"y": plain_fp32(m, d["x"]) + a}


def plain_fp32(m: Any, x: torch.Tensor) -> torch.Tensor:
    return scaled(m, x, square_mean(x))


class OnDict(Net):
    def __init__(self) -> None:
        super().__init__(on_dict)

    def forward(self, a: torch.Tensor, *, d: dict[str, torch.Tensor]) -> Any:  # type: ignore[override]  # by keyword is the case
        return on_dict(self, a, d=d)


def test_an_exported_module_keeps_its_signature() -> None:
    a, x, model = rows(seed=4), rows(), OnDict()
    gm = torch.export.export(model, (a,), {"d": {"x": x}}).module()
    assert_rewritten(fxfuse.rewrite(gm, options=options()))
    torch.testing.assert_close(gm(x, d={"x": a}), model(x, d={"x": a}))


def test_a_trace_with_concrete_args_keeps_its_signature() -> None:
    class Dicts(Net):
        def forward(self, d: dict[str, torch.Tensor]) -> Any:  # type: ignore[override]  # by keyword is the case
            return {"y": plain_fp32(self, d["x"])}

    model = Dicts(plain)
    gm = fx.symbolic_trace(model, concrete_args={"d": {"x": fx.PH}})
    env: dict[fx.Node, Any] = {}
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            env[node] = rows()
        elif node.op == "get_attr":
            env[node] = functools.reduce(getattr, node.target.split("."), gm)
        elif node.op == "call_function":
            env[node] = node.target(*fx.map_arg(node.args, env.get), **fx.map_arg(node.kwargs, env.get))
        elif node.op == "call_method":
            args = fx.map_arg(node.args, env.get)
            env[node] = getattr(args[0], node.target)(*args[1:], **fx.map_arg(node.kwargs, env.get))
        if node in env:
            node.meta["val"] = env[node]
    assert_rewritten(fxfuse.rewrite(gm, options=options()))
    other = rows(seed=4)
    torch.testing.assert_close(gm({"x": other}), model({"x": other}))


# --- deep graphs ----------------------------------------------------------------------------------------------------

LINKS: dict[str, tuple[int, Callable[[torch.Tensor], torch.Tensor]]] = {
    "add": (400, lambda x: x + 0.001),
    "reshape and add": (300, lambda x: x.reshape(2, 3, HIDDEN) + 0.0),
    "cast and clone": (300, lambda x: -(x.float().clone())),
    "residual": (200, lambda x: x * 0.5 + torch.sin(x)),
    "product": (300, lambda x: x * 1.0),
    "product with itself": (200, lambda x: (x * x).sqrt()),
    "views": (300, lambda x: x.view(6, HIDDEN).view(2, 3, HIDDEN)),
}


@pytest.mark.parametrize("link", LINKS)
def test_a_long_chain_before_the_site(link: str) -> None:
    length, step = LINKS[link]

    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        for _ in range(length):
            x = step(x)
        return plain(m, x)

    assert_rewritten(compiled(Net(body), rows(), rtol=1e-4))


def test_a_long_sum_after_the_site() -> None:
    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = plain(m, x)
        return sum((torch.relu(y) for _ in range(300)), torch.zeros(1))

    assert_rewritten(compiled(Net(body), rows(), rtol=1e-4))


# --- graphs inside graphs -------------------------------------------------------------------------------------------


def nested_checkpoint(m: Any, x: torch.Tensor) -> torch.Tensor:
    def inner(t: torch.Tensor) -> torch.Tensor:
        return checkpoint(functools.partial(plain, m), t, use_reentrant=False) * 2

    return checkpoint(inner, x, use_reentrant=False)


def one_checkpoint(m: Any, x: torch.Tensor) -> torch.Tensor:
    return checkpoint(functools.partial(plain, m), x, use_reentrant=False)


def in_cond(m: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.cond(x.sum() > 0, lambda t: plain(m, t), lambda t: t * 1.0, (x,))


def checkpoint_in_cond(m: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.cond(x.sum() > 0, functools.partial(one_checkpoint, m), lambda t: t * 1.0, (x,))


@pytest.mark.parametrize("body", [one_checkpoint, nested_checkpoint])
def test_bodies_of_checkpoints_are_rewritten_at_any_depth(body: Any) -> None:
    assert_rewritten(compiled(Net(body), rows()))


def test_gradients_through_nested_checkpoints() -> None:
    model = Net(nested_checkpoint, grad=True)
    twin = copy.deepcopy(model)
    backend = fxfuse.Backend(**options(inner="aot_eager"))
    torch.compile(model, backend=backend, fullgraph=True)(rows()).sum().backward()
    twin(rows()).sum().backward()
    assert_rewritten(fxfuse.reports()[-1])
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("body", [in_cond, checkpoint_in_cond])
def test_a_site_in_a_body_that_is_not_opened_has_a_row(body: Any) -> None:
    report = compiled(Net(body), rows())
    (site,) = report.sites
    assert (site.outcome, site.code) == ("missed", "REGION")
    assert "cond" in site.reason


def test_a_site_beside_a_cond_is_rewritten() -> None:
    report = compiled(Net(lambda m, x: in_cond(m.other, x) + plain(m, x), other=Net(plain)), rows())
    assert sorted(s.outcome for s in report.sites) == ["missed", "rewritten"]


# --- what a compile leaves behind -----------------------------------------------------------------------------------


@pytest.fixture
def swapping() -> Iterator[None]:
    """``Module.to`` swaps tensors, which nobody may hold a weak reference on."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize(
    ("weights", "body", "inner"),
    [
        ("auto", plain, "eager"),
        ("auto", plain, "aot_eager"),
        ("inline", plain, "eager"),
        ("auto", one_checkpoint, "eager"),
        ("auto", nested_checkpoint, "eager"),
        ("auto", nested_checkpoint, "aot_eager"),
    ],
)
def test_parameters_can_be_swapped_after_a_compile(swapping: None, weights: str, body: Any, inner: str) -> None:
    model = Net(body)
    backend = fxfuse.Backend(inner=inner, patterns=[PATTERN], weights=weights, on_error="raise")
    fast = torch.compile(model, backend=backend)
    fast(rows())
    assert_rewritten(fxfuse.reports()[-1])
    gc.collect()
    model.to(torch.float64)
    torch.testing.assert_close(fast(rows().double()), model(rows().double()))


def test_no_fake_tensor_outlives_the_compile() -> None:
    gc.collect()
    before = {id(o) for o in gc.get_objects() if isinstance(o, torch._subclasses.FakeTensorMode)}
    model = Net(plain)
    fast = torch.compile(model, backend=fxfuse.Backend(**options(inner="eager")))
    fast(rows())
    assert_rewritten(fxfuse.reports()[-1])
    gc.collect()
    alive = [o for o in gc.get_objects() if isinstance(o, torch._subclasses.FakeTensorMode) and id(o) not in before]
    assert not alive
    assert not weakref.getweakrefs(model.gate)


def entries(code: Any) -> int:
    return len(torch._dynamo.eval_frame._debug_get_cache_entry_list(code))


def test_explain_leaves_no_compiled_entry() -> None:
    with torch._dynamo.config.patch(accumulated_recompile_limit=4):
        for _ in range(6):
            assert_rewritten(fxfuse.explain(Net(plain), (rows(),), options=options()))
        assert entries(Net.forward.__code__) == 0
        before = fxfuse.reports()
        torch.compile(Net(plain), backend=fxfuse.Backend(**options(inner="eager")))(rows())
    assert fxfuse.reports()[-1:] != before[-1:], "the compile after it is no fallback to eager"
    assert_rewritten(fxfuse.reports()[-1])


def test_explain_spares_the_users_own_compiled_entries() -> None:
    model = Net(plain)
    seen: list[int] = []

    def count(gm: fx.GraphModule, examples: list[Any]) -> Any:
        seen.append(1)
        return gm.forward

    fast = torch.compile(model, backend=count)
    fast(rows())
    fxfuse.explain(model, (rows(),), options=options())
    fast(rows())
    assert len(seen) == 1


# --- a kernel that lays its result out in another way ---------------------------------------------------------------


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize("strided", [True, False])
def test_a_kernel_of_other_strides(strided: bool, inner: str) -> None:
    name = f"hostile_strides_{strided}_{inner}"

    @fxfuse.pattern(name)
    def doubled(x: Any = Input(..., D)) -> Any:
        return torch.tanh(x) * 2

    @fxfuse.kernel(doubled, name="of_this_test", default=True)
    def kernel(x: Any) -> Any:
        y = torch.tanh(x) * 2
        return y.transpose(0, 1).contiguous().transpose(0, 1) if strided else y

    def body(m: Any, x: torch.Tensor) -> Any:
        return (torch.tanh(x) * 2).view(-1), plain(m, x)

    model = Net(body)
    backend = fxfuse.Backend(inner=inner, patterns=[doubled, PATTERN], on_miss="silent")
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        got = torch.compile(model, backend=backend)(rows())
    torch.testing.assert_close(got, model(rows()))
    report = fxfuse.reports()[-1]
    assert_rewritten(report)  # the other site is not lost with it
    (site,) = [s for s in report.sites if s.pattern == name]
    assert strided or site.outcome == "rewritten"
    if site.outcome != "rewritten":
        assert site.code == "REWRITE_ERROR"
        assert "stride" in site.reason
    registry._REGISTRY.pop(name, None)


# --- regions of functorch and autocast ------------------------------------------------------------------------------


def under_vmap(m: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.func.vmap(lambda t: plain(m, t))(x)


def checkpoint_under_autocast(m: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return checkpoint(functools.partial(plain, m), x, use_reentrant=False)


@pytest.mark.parametrize("body", [under_vmap, checkpoint_under_autocast])
def test_known_regions_are_refused_without_a_warning(body: Any) -> None:
    """With ``on_error="raise"``: a region is no failure."""
    model = Net(lambda m, x: (body(m, x), plain(m, x)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*fxfuse.*")
        report = compiled(model, rows(), rtol=1e-2, atol=1e-2)
    assert sorted((s.outcome, s.code) for s in report.sites) == [("missed", "REGION"), ("rewritten", "")]


def test_one_failure_at_many_sites_is_warned_about_once() -> None:
    name = "hostile_many"

    @fxfuse.pattern(name)
    def doubled(x: Any = Input(..., D)) -> Any:
        return torch.tanh(x) * 2

    @fxfuse.kernel(doubled, name="of_this_test", default=True)
    def kernel(x: Any) -> Any:
        raise ZeroDivisionError("at every site")

    def chain(x: torch.Tensor) -> torch.Tensor:
        for _ in range(5):
            x = torch.tanh(x) * 2
        return x

    backend = fxfuse.Backend(inner="eager", patterns=[doubled], on_miss="silent")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.testing.assert_close(torch.compile(chain, backend=backend)(rows()), chain(rows()))
    assert [s.code for s in fxfuse.reports()[-1].sites] == ["REWRITE_ERROR"] * 5
    assert sum("at every site" in str(w.message) for w in caught) == 1
    registry._REGISTRY.pop(name, None)


def test_the_modules_of_these_tests_have_a_site() -> None:
    assert [s.outcome for s in sites(Net(plain), rows())] == ["rewritten"]
    assert Net(plain).gate.shape == (INTER, HIDDEN)
