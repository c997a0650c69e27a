"""A rewrite in place: what stays is the very node that it was, and what goes leaves nothing behind."""

from __future__ import annotations

import torch

from fxfuse.rewriting.copying import copy_graph
from fxfuse.rewriting.transplant import transplant
from tests.rewriting.several import graph_of, inputs, rewrite


def model(x, y, z):
    bent = torch.tanh(x)
    read = torch.sin(bent)
    late = torch.exp(z) + y
    return read + z, bent * torch.sigmoid(late)


def test_nodes_that_stay_are_the_same_objects_with_the_same_names():
    gm = graph_of(model, *inputs(count=3))
    graph, before = gm.graph, {n.name: n for n in gm.graph.nodes}
    rewrite(gm)
    assert gm.graph is graph
    after = {n.name: n for n in gm.graph.nodes}
    for name in ("l_x_", "read", "exp", "late", "output"):
        assert after[name] is before[name]
    assert "bent" not in after


def test_the_graph_is_whole_and_runs():
    gm = graph_of(model, *inputs(count=3))
    args = inputs(count=3)
    want = gm(*args)
    rewrite(gm)
    gm.graph.lint()
    torch.testing.assert_close(gm(*args), want)


def test_what_only_the_site_read_goes_with_it():
    """A view that the matcher saw through has no reader left; neither has what computed it."""

    def spelled(x, y):
        bent = torch.tanh(x)
        return bent.sum(), bent.contiguous() * torch.sigmoid(y.view(y.shape))

    gm = graph_of(spelled, *inputs())
    rewrite(gm)
    unread = [n for n in gm.graph.nodes if not n.users and n.op not in {"placeholder", "output"}]
    assert unread == []


def test_what_was_dead_before_stays():
    def dead(x, y):
        torch.cos(x)
        bent = torch.tanh(x)
        return bent + 1, bent * torch.sigmoid(y)

    gm = graph_of(dead, *inputs())
    unread = [n.name for n in gm.graph.nodes if not n.users]
    rewrite(gm)
    assert [n.name for n in gm.graph.nodes if not n.users] == unread


def test_transplanting_an_unedited_copy_changes_nothing():
    gm = graph_of(model, *inputs(count=3))
    before, nodes = str(gm.graph), list(gm.graph.nodes)
    copied, mapping = copy_graph(gm)
    transplant(gm.graph, copied, {new: old for old, new in mapping.items()})
    assert str(gm.graph) == before
    assert list(gm.graph.nodes) == nodes


def test_transplanting_follows_inserted_moved_and_erased_nodes():
    gm = graph_of(model, *inputs(count=3))
    copied, mapping = copy_graph(gm)
    by_name = {n.name: n for n in copied.nodes}
    with copied.inserting_before(by_name["read"]):
        extra = copied.call_function(torch.neg, (by_name["bent"],))
    by_name["read"].args = (extra,)
    by_name["exp"].append(by_name["read"])
    transplant(gm.graph, copied, {new: old for old, new in mapping.items()})
    gm.graph.lint()
    assert [n.name for n in gm.graph.nodes] == [n.name for n in copied.nodes]
    assert [str(n.args) for n in gm.graph.nodes] == [str(n.args) for n in copied.nodes]
