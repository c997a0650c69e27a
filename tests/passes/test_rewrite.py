"""`fxfuse.rewrite` on GraphModules: every dialect, in place, once and twice, and what it refuses to guess."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

import fxfuse
from fxfuse import Dim, Input, Param, stack
from tests.passes.nets import PATTERN, Net, assert_as_exact, options, rows, text
from tests.support import capture

D, N = Dim("d"), Dim("n")


class Functional(nn.Module):
    """Traced by `torch.fx.symbolic_trace`, this calls functions only."""

    def __init__(self) -> None:
        super().__init__()
        block = Net(1).blocks[0]
        self.weight, self.gate, self.up, self.down = (
            block.norm.weight, block.gate.weight, block.up.weight, block.down.weight,
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.to(torch.float32)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        h = self.weight * h.to(torch.float32)
        return F.linear(F.silu(F.linear(h, self.gate)) * F.linear(h, self.up), self.down)


def dynamo(model: nn.Module, *args: torch.Tensor) -> fx.GraphModule:
    """Dynamo's graph as a module of one argument: the parameters are bound."""
    gm, live = capture(model, *args)
    bound = {n.target: a for n, a in zip(gm.graph.find_nodes(op="placeholder"), live, strict=True)}
    gm.bound = bound
    return gm


def run(gm: fx.GraphModule, x: torch.Tensor) -> torch.Tensor:
    if not hasattr(gm, "bound"):
        return gm(x)
    values = [a if isinstance(a, nn.Parameter) else x for a in gm.bound.values()]
    (out,) = gm(*values)
    return out


def graph_of(dialect: str, model: nn.Module, x: torch.Tensor) -> fx.GraphModule:
    if dialect == "dynamo":
        return dynamo(model, x)
    program = torch.export.export(model, (x,))
    return (program if dialect == "export" else program.run_decompositions()).module()


DIALECTS = ["dynamo", "export", "core"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_is_rewritten_in_place(dialect, dtype):
    model, x = Net(dtype=dtype), rows(dtype=dtype)
    gm = graph_of(dialect, model, x)
    graph = gm.graph
    report = fxfuse.rewrite(gm, options=options(expect={PATTERN: 2}))
    assert report.rewritten == {PATTERN: 2}
    assert gm.graph is graph
    assert_as_exact(run(gm, x), model, x)


@pytest.mark.parametrize("kernel", ["plain", "reference"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_second_rewrite_changes_nothing_but_names(dialect, kernel):
    model, x = Net(), rows()
    gm = graph_of(dialect, model, x)
    wished = options(kernels={PATTERN: kernel})
    fxfuse.rewrite(gm, options=wished)
    count, once = len(gm.graph.nodes), run(gm, x)
    kinds = [n.target for n in gm.graph.nodes if n.op.startswith("call_")]
    for _ in range(2):
        assert fxfuse.rewrite(gm, options=wished).rewritten == {PATTERN: 2}
        assert len(gm.graph.nodes) == count
        assert [n.target for n in gm.graph.nodes if n.op.startswith("call_")] == kinds
        assert torch.equal(run(gm, x), once)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_nothing_is_left_that_only_the_sites_read(dialect):
    model, x = Net(), rows()
    gm = graph_of(dialect, model, x)
    unread = {n.name for n in gm.graph.nodes if not n.users}
    fxfuse.rewrite(gm, options=options())
    assert {n.name for n in gm.graph.nodes if not n.users} <= unread


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("wrong", [{"expect": {PATTERN: 3}}, {"expect_rewritten": {PATTERN: 1}}, {"paths": ["none.*"]}])
def test_what_is_not_as_expected_raises_and_changes_nothing(dialect, wrong):
    gm = graph_of(dialect, Net(), rows())
    before = text(gm)
    with pytest.raises(fxfuse.ExpectationError):
        fxfuse.rewrite(gm, options=options(**wrong))
    assert text(gm) == before


def test_a_named_pattern_that_matches_nowhere():
    gm = graph_of("export", nn.Linear(8, 8), rows())
    with pytest.warns(UserWarning, match=f"pattern '{PATTERN}' was named and matched nowhere"):
        fxfuse.rewrite(gm, options=options())
    with pytest.raises(fxfuse.ExpectationError, match=PATTERN):
        fxfuse.rewrite(gm, options=options(on_miss="error"))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_paths_choose_among_the_sites(dialect):
    gm = graph_of(dialect, Net(), rows())
    report = fxfuse.rewrite(gm, options=options(paths=["blocks.1"]))
    assert [(s.outcome, s.code) for s in report.sites] == [("kept", "DISABLED"), ("rewritten", "")]


@pytest.mark.parametrize("name", ["inner", "inner_options", "mode"])
def test_options_for_a_compile_mean_nothing_here(name):
    value = {"inner": "eager", "inner_options": {}, "mode": "default"}[name]
    with pytest.raises(fxfuse.OptionError, match=f"compiles nothing, so it takes no option '{name}'"):
        fxfuse.rewrite(graph_of("export", Net(), rows()), options=options(**{name: value}))


def test_what_is_no_graph():
    with pytest.raises(TypeError, match=r"a torch\.fx\.GraphModule or a torch\.export\.ExportedProgram; given Net"):
        fxfuse.rewrite(Net())


# --- without Dynamo and without export --------------------------------------------------------------------------------


def test_a_traced_graph_without_example_values_is_an_error_that_says_what_is_missing():
    gm = fx.symbolic_trace(Functional())
    before = text(gm)
    with pytest.raises(fxfuse.CaptureError, match=r"no node of the graph has an example value .* the first is to\)"):
        fxfuse.rewrite(gm, options=options())
    assert text(gm) == before


def test_with_them_it_is_rewritten_and_new_nodes_have_them_too():
    model, x = Functional(), rows()
    gm = fx.symbolic_trace(model)
    FakeTensorProp(gm, FakeTensorMode(allow_non_fake_inputs=True)).propagate(x)
    assert fxfuse.rewrite(gm, options=options()).rewritten == {PATTERN: 1}
    assert all("val" in n.meta for n in gm.graph.nodes if n.op.startswith("call_"))
    assert_as_exact(gm(x), model, x)


def test_modules_that_are_called_as_a_whole_are_named():
    model, x = Net(1), rows()
    gm = fx.symbolic_trace(model.blocks[0])
    FakeTensorProp(gm, FakeTensorMode(allow_non_fake_inputs=True)).propagate(x)
    with pytest.warns(UserWarning, match="matched nowhere"):
        report = fxfuse.rewrite(gm, options=options())
    assert report.notes == (
        "3 modules are called as a whole and were not looked into: gate (Linear), up (Linear), down (Linear)",
    )


def test_a_graph_that_calls_nothing():
    assert fxfuse.rewrite(fx.symbolic_trace(lambda x: x), options={}).sites == ()


# --- kernels ----------------------------------------------------------------------------------------------------------


@fxfuse.pattern("gated_pair")
def gated_pair(x=Input(..., D), a=Param(N, D), b=Param(N, D)):
    return F.silu(F.linear(x, a)) * F.linear(x, b)


@torch.library.custom_op("fxfuse_tests::gated", mutates_args=())
def gated(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.silu(F.linear(x, a)) * F.linear(x, b)


@gated.register_fake
def _(x, a, b):
    return x.new_empty((*x.shape[:-1], a.shape[0]))


@fxfuse.kernel(gated_pair, name="one_call", backward=None)
def one_call(x, a, b):
    return torch.ops.fxfuse_tests.gated(x, a, b)


@fxfuse.kernel(gated_pair, name="merged", derive={"rows": stack("a", "b")}, backward="autograd")
def merged(x, rows):
    left, right = F.linear(x, rows).chunk(2, -1)
    return F.silu(left) * right


@fxfuse.kernel(gated_pair, name="with_a_constant", backward="autograd")
def with_a_constant(x, a, b):
    return F.silu(F.linear(x, a)) * F.linear(x, b) * torch.tensor([1.0])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_custom_op_is_one_call_and_is_not_found_again(dialect):
    model, x = Net(), rows()
    gm = graph_of(dialect, model, x)
    wished = {"patterns": [gated_pair], "kernels": {"gated_pair": "one_call"}, "on_miss": "silent"}
    assert fxfuse.rewrite(gm, options=wished).rewritten == {"gated_pair": 2}
    found = [n for n in gm.graph.nodes if "fxfuse_tests" in str(n.target)]
    assert len(found) == 2
    assert_as_exact(run(gm, x), model, x)
    before = text(gm)
    assert fxfuse.rewrite(gm, options=wished).matched == {}
    assert text(gm) == before


@pytest.mark.parametrize("dialect", DIALECTS)
def test_derived_weights_are_computed_in_the_graph(dialect):
    model, x = Net(), rows()
    gm = graph_of(dialect, model, x)
    state = copy.deepcopy(model.state_dict())
    wished = {"patterns": [gated_pair], "kernels": {"gated_pair": "merged"}, "weights": "inline"}
    report = fxfuse.rewrite(gm, options=wished)
    assert [s.weights for s in report.sites] == ["inline", "inline"]
    assert_as_exact(run(gm, x), model, x)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize("dialect", ["export", "core"])
def test_a_kernel_that_makes_a_constant_cannot_be_taken_in(dialect):
    gm = graph_of(dialect, Net(), rows())
    before = text(gm)
    wished = {"patterns": [gated_pair], "kernels": {"gated_pair": "with_a_constant"}}
    report = fxfuse.rewrite(gm, options=wished)
    assert {(s.outcome, s.code) for s in report.sites} == {("kept", "REWRITE_ERROR")}
    assert "makes a tensor constant" in report.sites[0].reason
    assert text(gm) == before
