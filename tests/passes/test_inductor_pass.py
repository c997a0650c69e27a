"""`InductorPass` in real compiles: each hook, the numbers, the options that it takes, and what a failure leaves."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F

import fxfuse
from fxfuse import Dim, InductorPass, Input, Param
from fxfuse.compat import custom_graph_pass
from tests.passes.nets import PATTERN, Net, assert_as_exact, rows

D, N = Dim("d"), Dim("n")
CHOICE = {"patterns": [PATTERN], "kernels": {PATTERN: "plain"}}


@fxfuse.pattern("inductor_pair")
def inductor_pair(x=Input(..., D), a=Param(N, D), b=Param(N, D)):
    return F.silu(F.linear(x, a)) * F.linear(x, b)


@fxfuse.kernel(inductor_pair, name="fails", backward="autograd")
def fails(x, a, b):
    raise RuntimeError("this kernel cannot")


@fxfuse.kernel(inductor_pair, name="merged_inline", backward="autograd")
def merged_inline(x, a, b):
    left, right = F.linear(x, torch.cat([a, b])).chunk(2, -1)
    return F.silu(left) * right


def compiled(model: torch.nn.Module, hook: str, run: InductorPass, **more: object):
    torch._dynamo.reset()
    return torch.compile(model, options={hook: run, "fx_graph_cache": False}, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hook", ["pre_grad_custom_pass", "post_grad_custom_post_pass"])
def test_the_hooks_before_and_after_autograd(hook, dtype):
    model, x, run = Net(dtype=dtype), rows(dtype=dtype), InductorPass(on_error="raise", **CHOICE)
    with torch.no_grad():
        got = compiled(model, hook, run)(x)
    assert [dict(r.rewritten) for r in run.reports] == [{PATTERN: 2}]
    assert_as_exact(got, model, x)


@pytest.mark.parametrize("hook", ["joint_custom_pre_pass", "joint_custom_post_pass", "post_grad_custom_pre_pass"])
def test_the_other_hooks(hook):
    model, x, run = Net(1), rows(), InductorPass(on_error="raise", **CHOICE)
    with torch.no_grad():
        got = compiled(model, hook, run)(x)
    assert [dict(r.rewritten) for r in run.reports] == [{PATTERN: 1}]
    assert_as_exact(got, model, x)


def test_what_a_kernel_does_reaches_the_compiled_code():
    """The kernel merges two GEMMs; with the sizes as they are, the code must hold a `cat` that the model does not."""
    seen: list[list[str]] = []
    run = InductorPass(patterns=[inductor_pair], kernels={"inductor_pair": "merged_inline"}, on_error="raise")
    model, x = Net(1), rows()
    look = {"post_grad_custom_post_pass": lambda graph: seen.append([str(n.target) for n in graph.nodes])}
    torch._dynamo.reset()
    with torch.no_grad():
        got = torch.compile(model, options={"post_grad_custom_pre_pass": run, "fx_graph_cache": False, **look})(x)
    assert any("aten.cat" in target for target in seen[0])
    assert sum("aten.mm" in target for target in seen[0]) == 2
    assert_as_exact(got, model, x)


def test_gradients_through_a_rewrite_before_autograd():
    model, other, run = Net(1), Net(1), InductorPass(on_error="raise", **CHOICE)
    model.requires_grad_(True)
    other.requires_grad_(True)
    compiled(model, "pre_grad_custom_pass", run)(rows()).square().sum().backward()
    other(rows()).square().sum().backward()
    assert [dict(r.rewritten) for r in run.reports] == [{PATTERN: 1}]
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)


def test_after_autograd_what_the_backward_needs_is_left_alone():
    model, other, run = Net(1), Net(1), InductorPass(on_error="raise", **CHOICE)
    model.requires_grad_(True)
    other.requires_grad_(True)
    compiled(model, "post_grad_custom_post_pass", run)(rows()).square().sum().backward()
    other(rows()).square().sum().backward()
    forward, backward = run.reports
    assert not forward.rewritten
    assert not backward.rewritten
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)


def test_a_dynamic_batch_makes_no_further_graph():
    model, run = Net(1), InductorPass(on_error="raise", **CHOICE)
    with torch.no_grad():
        fast = compiled(model, "post_grad_custom_post_pass", run, dynamic=True)
        for shape in ((2, 5, 8), (3, 7, 8), (4, 9, 8)):
            assert_as_exact(fast(rows(*shape)), model, rows(*shape))
    assert [dict(r.rewritten) for r in run.reports] == [{PATTERN: 1}]


def test_ambient_autocast_after_autograd_is_no_reason_to_refuse():
    """There the casts are written out; before autograd they leave no node, and the site is left alone."""
    model, x = Net(1), rows()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = model(x)
        before = InductorPass(on_error="raise", **CHOICE)
        torch.testing.assert_close(compiled(model, "pre_grad_custom_pass", before)(x), want, rtol=2e-2, atol=2e-2)
        after = InductorPass(on_error="raise", **CHOICE)
        torch.testing.assert_close(compiled(model, "post_grad_custom_post_pass", after)(x), want, rtol=2e-2, atol=2e-2)
    assert {s.code for r in before.reports for s in r.sites} == {"REGION"}
    assert all(s.code != "REGION" for r in after.reports for s in r.sites)


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failing_kernel_leaves_the_graph_and_a_row():
    model, x = Net(1), rows()
    run = InductorPass(patterns=[inductor_pair], kernels={"inductor_pair": "fails"})
    with torch.no_grad():
        got = compiled(model, "post_grad_custom_post_pass", run)(x)
    assert [(s.outcome, s.code) for s in run.reports[0].sites] == [("kept", "REWRITE_ERROR")]
    assert_as_exact(got, model, x)


def test_or_raises_where_that_was_asked_for():
    run = InductorPass(patterns=[inductor_pair], kernels={"inductor_pair": "fails"}, on_error="raise")
    with torch.no_grad(), pytest.raises(Exception, match="this kernel cannot"):
        compiled(Net(1), "post_grad_custom_post_pass", run)(rows())


def test_only_the_graph_of_a_graph_module():
    with pytest.raises(TypeError, match="InductorPass takes the graph of a GraphModule; given one of NoneType"):
        InductorPass()(torch.fx.Graph())


# --- what it is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inner", "inner_options", "mode", "expect", "expect_rewritten", "on_miss"])
def test_options_that_do_not_speak_of_one_graph(name):
    value = {"inner": "eager", "inner_options": {}, "mode": "default", "on_miss": "warn"}.get(name, {PATTERN: 1})
    with pytest.raises(fxfuse.OptionError, match=f"it takes no option '{name}'"):
        InductorPass(**{name: value})


def test_a_bad_option_is_refused_at_once():
    with pytest.raises(fxfuse.OptionError, match="Did you mean 'patterns'"):
        InductorPass(pattern=[PATTERN])


def test_equal_options_are_equal_passes():
    assert InductorPass(**CHOICE) == InductorPass(**CHOICE)
    assert hash(InductorPass(**CHOICE)) == hash(InductorPass(**CHOICE))
    assert InductorPass(**CHOICE) != InductorPass(paths=["blocks.*"], **CHOICE)


def test_inductor_knows_it_by_its_base_and_its_uuid():
    run = InductorPass(**CHOICE)
    assert isinstance(run, custom_graph_pass())
    assert pickle.loads(pickle.dumps(run.uuid())) == run.uuid()


def test_nothing_process_wide_changes():
    kept, config = len(fxfuse.reports()), torch._inductor.config.save_config_portable()
    model, run = Net(1), InductorPass(**CHOICE)
    with torch.no_grad():
        compiled(model, "post_grad_custom_post_pass", run)(rows())
    assert len(fxfuse.reports()) == kept
    assert torch._inductor.config.save_config_portable() == config
