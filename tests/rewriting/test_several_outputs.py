"""Sites of several results: where the kernel goes, what moves behind it, and when that may not be."""

from __future__ import annotations

import pytest
import torch

from fxfuse.safeguards import lifted
from tests.rewriting.several import check, graph_of, inputs, kernel, outcomes, rewrite

REWRITTEN = [("rewritten", "")]


@torch.library.custom_op("fxfuse_tests::bent_pair", mutates_args=())
def bent_pair(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    bent = torch.tanh(x)
    return bent.clone(), bent * torch.sigmoid(y)


@bent_pair.register_fake
def _(x, y):
    return torch.empty_like(x), torch.empty_like(x)


@kernel("one_call")
def one_call(x, y):
    bent, scaled = torch.ops.fxfuse_tests.bent_pair.default(x, y)
    return bent, scaled


def together(x, y):
    bent = torch.tanh(x)
    return bent + 1, bent * torch.sigmoid(y)


def test_both_results_are_replaced():
    report = check(together, *inputs())
    assert outcomes(report) == REWRITTEN


def test_the_original_operations_are_gone():
    gm = graph_of(together, *inputs())
    rewrite(gm)
    names = [n.name for n in gm.graph.nodes]
    assert not any("tanh" in name for name in names), names


def early_reader(x, y, z):
    """The first result is read before the second's operand is there."""
    bent = torch.tanh(x)
    read = torch.sin(bent)
    again = torch.cos(read)
    late = torch.exp(z) + y
    return again, bent * torch.sigmoid(late)


def test_a_reader_that_comes_before_the_last_operand_is_moved_behind():
    x, y, z = inputs(count=3)
    assert outcomes(check(early_reader, x, y, z)) == REWRITTEN


def test_what_moves_keeps_its_order_and_nothing_else_moves():
    gm = graph_of(early_reader, *inputs(count=3))
    before = [n.name for n in gm.graph.nodes]
    rewrite(gm)
    after = [n.name for n in gm.graph.nodes]
    assert after.index("read") < after.index("again")
    assert after.index("again") > after.index("late")
    stayed = [n for n in after if n in before and n not in {"read", "again"}]
    assert stayed == [n for n in before if n in stayed]


def its_own_operand(x, y):
    """The second operand is computed from the first result."""
    bent = torch.tanh(x)
    late = torch.exp(bent) + y
    return bent + 1, bent * torch.sigmoid(late)


def test_an_operand_that_depends_on_a_result_is_refused():
    assert outcomes(check(its_own_operand, *inputs())) == [("missed", "CYCLE")]


def crossed(a, b):
    """Two sites; the late operand of each is computed from the early result of the other."""
    first, second = torch.tanh(a), torch.tanh(b)
    from_second, from_first = torch.exp(second), torch.exp(first)
    return first * torch.sigmoid(from_second), second * torch.sigmoid(from_first), first + 1, second + 2


def one_way(a, b):
    first, second = torch.tanh(a), torch.tanh(b)
    from_second, from_input = torch.exp(second), torch.exp(a)
    return first * torch.sigmoid(from_second), second * torch.sigmoid(from_input), first + 1, second + 2


def test_two_sites_that_are_cyclic_only_together():
    report = check(crossed, *inputs(), kernel="one_call")
    assert sorted(outcomes(report)) == [("missed", "CYCLE"), ("rewritten", "")]
    (lost,) = [s for s in report.sites if s.code == "CYCLE"]
    assert "depends on its own output" in lost.reason


def test_their_mutant_without_the_way_back_is_rewritten_twice():
    assert outcomes(check(one_way, *inputs(), kernel="one_call")) == REWRITTEN * 2


def test_results_that_a_kernel_computes_apart_are_in_no_cycle():
    """Of a kernel in plain PyTorch the first result does not wait for the second operand."""
    assert outcomes(check(crossed, *inputs())) == REWRITTEN * 2


def write_between(x, y, z):
    bent = torch.tanh(x)
    read = torch.sin(bent)
    z.add_(1)
    late = torch.exp(y) + 1
    return read, bent * torch.sigmoid(late)


def write_before(x, y, z):
    z.add_(1)
    bent = torch.tanh(x)
    read = torch.sin(bent)
    late = torch.exp(y) + 1
    return read, bent * torch.sigmoid(late)


def test_nothing_is_moved_over_a_write():
    report = check(write_between, *inputs(count=3))
    assert outcomes(report) == [("kept", "REWRITE_ERROR")]
    assert "has an effect" in report.sites[0].reason


def test_a_write_elsewhere_does_not_matter():
    assert outcomes(check(write_before, *inputs(count=3))) == REWRITTEN


def reader_of_the_written(x, y, z):
    """The reader that would move reads what is written in between: moved, it would see the new value."""
    bent = torch.tanh(x)
    read = bent + z
    z.add_(1)
    late = torch.exp(y) + 1
    return read, bent * torch.sigmoid(late)


def test_the_refusal_is_what_keeps_the_result_right():
    args = inputs(count=3)
    assert outcomes(check(reader_of_the_written, *args)) == [("kept", "REWRITE_ERROR")]
    with lifted("nothing-crossed"), pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check(reader_of_the_written, *args)


def seeded_between(x, y):
    bent = torch.tanh(x)
    read = torch.sin(bent)
    noise = torch.rand_like(y)
    late = torch.exp(y) + 1
    return read + noise * 0, bent * torch.sigmoid(late)


def test_random_state_is_an_effect():
    gm = graph_of(seeded_between, *inputs())
    report = rewrite(gm)
    assert outcomes(report) == [("kept", "REWRITE_ERROR")]
    assert "cross noise, which has an effect" in report.sites[0].reason


def grad_switch_between(x, y):
    bent = torch.tanh(x)
    read = torch.sin(bent)
    with torch.no_grad():
        late = torch.exp(y) + 1
    return read, bent * torch.sigmoid(late)


def test_a_mode_switch_between_the_results_is_refused():
    report = check(grad_switch_between, *inputs())
    assert all(outcome != "rewritten" for outcome, _ in outcomes(report))


# --- what a kernel returns --------------------------------------------------------------------------------------------


@kernel("one_result")
def one_result(x, y):
    return torch.tanh(x) * torch.sigmoid(y)


@kernel("three_results")
def three_results(x, y):
    bent = torch.tanh(x)
    return bent, bent * torch.sigmoid(y), bent


@kernel("a_number")
def a_number(x, y):
    return torch.tanh(x), 1.0


@kernel("swapped_shape")
def swapped_shape(x, y):
    bent = torch.tanh(x)
    return bent, (bent * torch.sigmoid(y)).sum(0)


@kernel("other_strides")
def other_strides(x, y):
    bent = torch.tanh(x)
    return bent, (bent * torch.sigmoid(y)).t().contiguous().t()


@kernel("other_dtype")
def other_dtype(x, y):
    bent = torch.tanh(x)
    return bent, (bent * torch.sigmoid(y)).double()


@kernel("one_memory")
def one_memory(x, y):
    bent = torch.tanh(x)
    return bent, bent.view_as(bent)


@kernel("a_list")
def a_list(x, y):
    bent = torch.tanh(x)
    return [bent, bent * torch.sigmoid(y)]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("one_result", "kernel 'one_result' returned _Operand, not a tuple of 2 tensors"),
        ("three_results", "kernel 'three_results' returned 3 tensors; the site has 2 results"),
        ("a_number", "kernel 'a_number' returned tuple of _Operand, float, not a tuple of 2 tensors"),
        ("swapped_shape", "result 2 of 2 of 'swapped_shape' gives torch.float32 (6,)"),
        ("other_strides", "result 2 of 2 of 'other_strides' gives strides (1, 4); the site gives (6, 1)"),
        ("other_dtype", "result 2 of 2 of 'other_dtype' gives torch.float64"),
        ("one_memory", "what kernel 'one_memory' returns as"),
    ],
)
def test_results_that_do_not_fit_are_refused_and_leave_the_graph_alone(name, says):
    gm = graph_of(together, *inputs())
    before = str(gm.graph)
    report = rewrite(gm, name)
    assert outcomes(report) == [("kept", "REWRITE_ERROR")]
    assert says in report.sites[0].reason
    assert str(gm.graph) == before


def test_a_list_is_as_good_as_a_tuple():
    assert outcomes(check(together, *inputs(), kernel="a_list")) == REWRITTEN


def test_on_error_raise_raises_before_anything_changed():
    gm = graph_of(together, *inputs())
    before = str(gm.graph)
    with pytest.raises(Exception, match="3 tensors; the site has 2 results"):
        rewrite(gm, "three_results", on_error="raise")
    assert str(gm.graph) == before


def test_an_op_of_two_results_is_one_call():
    gm = graph_of(together, *inputs())
    report = rewrite(gm, "one_call")
    assert outcomes(report) == REWRITTEN
    assert len(gm.graph.find_nodes(op="call_function", target=torch.ops.fxfuse_tests.bent_pair.default)) == 1
    assert outcomes(rewrite(gm, "one_call")) == []


@kernel("one_call_as_it_is")
def one_call_as_it_is(x, y):
    return torch.ops.fxfuse_tests.bent_pair.default(x, y)


def test_what_such_an_op_returns_need_not_be_taken_apart():
    assert outcomes(check(together, *inputs(), kernel="one_call_as_it_is")) == REWRITTEN
