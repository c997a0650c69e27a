"""Exported programs: graph, signature and state dict stay one, and everything that can be done with one still can."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim as Size
from torch.export import export

import fxfuse
from fxfuse import Dim, Input, Param
from tests.passes.nets import PATTERN, Net, assert_as_exact, options, rows, text

D, N = Dim("d"), Dim("n")


def exported(model: nn.Module, *args: torch.Tensor, dynamic: bool = False, core: bool = False):
    shapes = ({1: Size("tokens", min=2, max=64)},) if dynamic else None
    program = export(model, args, dynamic_shapes=shapes)
    return program.run_decompositions() if core else program


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("core", [False, True])
def test_rewritten_run_saved_and_decomposed(core, dynamic, dtype):
    model, x = Net(dtype=dtype), rows(dtype=dtype)
    program = exported(model, x, dynamic=dynamic, core=core)
    before = copy.deepcopy(program.graph_signature)
    assert fxfuse.rewrite(program, options=options()).rewritten == {PATTERN: 2}
    program.validate()
    other = rows(2, 9, 8, dtype=dtype) if dynamic else x

    stream = io.BytesIO()
    torch.export.save(program, stream)
    stream.seek(0)
    for later in (program, torch.export.load(stream), program.run_decompositions(), copy.deepcopy(program)):
        assert_as_exact(later.module()(other), model, other)
        assert later.state_dict.keys() == model.state_dict().keys()
    after = program.graph_signature
    assert after.input_specs == before.input_specs
    assert [(s.kind, s.target) for s in after.output_specs] == [(s.kind, s.target) for s in before.output_specs]
    returned = [n.name for n in program.graph.output_node().args[0]]
    assert [s.arg.name for s in after.output_specs] == returned


@pytest.mark.parametrize("core", [False, True])
def test_a_second_rewrite_leaves_an_equal_program(core):
    model, x = Net(), rows()
    program = exported(model, x, dynamic=True, core=core)
    fxfuse.rewrite(program, options=options())
    count, once = len(program.graph.nodes), program.module()(x)
    assert fxfuse.rewrite(program, options=options()).rewritten == {PATTERN: 2}
    assert len(program.graph.nodes) == count
    assert torch.equal(program.module()(x), once)


def test_the_range_of_a_dynamic_size_stays():
    program = exported(Net(), rows(), dynamic=True)
    ranges = dict(program.range_constraints)
    fxfuse.rewrite(program, options=options())
    assert program.range_constraints == ranges
    for tokens in (2, 7, 64):
        x = rows(2, tokens, 8)
        assert_as_exact(program.module()(x), Net(), x)


class Counting(nn.Module):
    """Returns a site's result as it is, writes a buffer, and writes an input."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Net(1).blocks[0]
        self.requires_grad_(False)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.count.add_(1)
        h = self.block.norm(x)
        out = self.block.down(F.silu(self.block.gate(h)) * self.block.up(h))
        seen.add_(out)
        return out, self.count + 0


@pytest.mark.parametrize("core", [False, True])
def test_writes_and_several_results_stay_what_they_were(core):
    model, x = Counting(), rows()
    eager = copy.deepcopy(model)
    program = exported(model, x, torch.zeros_like(x), core=core)
    kinds = [(s.kind, s.target) for s in program.graph_signature.output_specs]
    assert fxfuse.rewrite(program, options=options()).rewritten == {PATTERN: 1}
    program.validate()
    assert [(s.kind, s.target) for s in program.graph_signature.output_specs] == kinds
    mine, theirs = torch.zeros_like(x), torch.zeros_like(x)
    got, counted = program.module()(x, mine)
    want, expected = eager(x, theirs)
    torch.testing.assert_close((got, counted, mine), (want, expected, theirs))


@fxfuse.pattern("exported_pair")
def exported_pair(x=Input(..., D), a=Param(N, D), b=Param(N, D)):
    return F.silu(F.linear(x, a)) * F.linear(x, b)


@fxfuse.kernel(exported_pair, name="asks_for_a_size", backward="autograd")
def asks_for_a_size(x, a, b):
    wide = x.shape[1] == 5
    return F.silu(F.linear(x, a)) * F.linear(x, b) if wide else F.linear(x, b) * F.silu(F.linear(x, a))


@fxfuse.kernel(exported_pair, name="few_rows", rows=(1, 16), backward="autograd")
def few_rows(x, a, b):
    return F.linear(x, b) * F.silu(F.linear(x, a))


@pytest.mark.parametrize("kernel", ["asks_for_a_size", "few_rows"])
@pytest.mark.parametrize("core", [False, True])
def test_a_size_that_was_promised_to_be_dynamic_is_never_made_a_constant(core, kernel):
    program = exported(Net(), rows(), dynamic=True, core=core)
    before, ranges = text(program.graph_module), dict(program.range_constraints)
    wished = {"patterns": [exported_pair], "kernels": {"exported_pair": kernel}}
    report = fxfuse.rewrite(program, options=wished)
    assert {(s.outcome, s.code) for s in report.sites} == {("kept", "REWRITE_ERROR")}
    assert text(program.graph_module) == before
    assert program.range_constraints == ranges
    with pytest.raises(RuntimeError, match="uard"):
        fxfuse.rewrite(program, options={**wished, "on_error": "raise"})
    assert text(program.graph_module) == before


@pytest.mark.parametrize("kernel", ["asks_for_a_size", "few_rows"])
def test_a_static_size_may_be_asked_for(kernel):
    model, x = Net(), rows()
    program = exported(model, x)
    wished = {"patterns": [exported_pair], "kernels": {"exported_pair": kernel}}
    assert fxfuse.rewrite(program, options=wished).rewritten == {"exported_pair": 2}
    assert_as_exact(program.module()(x), model, x)


@pytest.mark.parametrize("wrong", [{"expect": {PATTERN: 3}}, {"paths": ["none.*"]}])
def test_what_is_not_as_expected_changes_nothing(wrong):
    program = exported(Net(), rows())
    before, signature = text(program.graph_module), copy.deepcopy(program.graph_signature)
    with pytest.raises(fxfuse.ExpectationError):
        fxfuse.rewrite(program, options=options(**wrong))
    assert text(program.graph_module) == before
    assert program.graph_signature == signature


def test_a_promised_boundary_that_would_be_gone_is_refused_before_anything_changed():
    model, x = Net(), rows()
    program = export(model, (x,), preserve_module_call_signature=("blocks.0.gate",))
    before = text(program.graph_module)
    with pytest.raises(ValueError, match=r"preserves the call signature of 'blocks\.0\.gate'"):
        fxfuse.rewrite(program, options=options())
    assert text(program.graph_module) == before


def test_a_promised_boundary_around_the_sites_does_not_matter():
    model, x = Net(), rows()
    program = export(model, (x,), preserve_module_call_signature=("blocks.0.gate",))
    assert fxfuse.rewrite(program, options=options(paths=["blocks.1"])).rewritten == {PATTERN: 1}
    assert_as_exact(torch.export.unflatten(program)(x), model, x)


def test_what_is_trained_is_still_differentiable():
    model, x = Net().requires_grad_(True), rows()
    program = exported(model, x)
    assert fxfuse.rewrite(program, options=options()).rewritten == {PATTERN: 2}
    module = program.module()
    module(x).square().sum().backward()
    model(x).square().sum().backward()
    want = {name: p.grad for name, p in model.named_parameters()}
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name])
