"""What the inputs of ATen graphs are, as signatures, descriptors and the compile around a pass tell; and writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import HIDDEN, Net, plain, rms, rows
from torch import fx, nn
from view.aten_graphs import Captured, exported, graph_of, inductor_graph

from fxfuse import compat
from fxfuse.match import find_sites
from fxfuse.view import LeafKind, View
from fxfuse.view.effects import Effects
from fxfuse.view.leaves import leaves_of
from fxfuse_patterns.rms_norm_gated_mlp import rms_norm_gated_mlp

PARAMETER, BUFFER, INPUT = LeafKind.PARAMETER, LeafKind.BUFFER, LeafKind.INPUT


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.register_buffer("scale", torch.ones(HIDDEN))
        self.inner.requires_grad_(False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.scale + y


OF_MODEL = {("inner.weight", PARAMETER), ("scale", BUFFER)}


def kinds(captured: Captured) -> list[tuple[str, LeafKind]]:
    assert captured.leaves is not None
    assert [leaf.position for leaf in captured.leaves] == list(range(len(captured.leaves)))
    return [(leaf.path, leaf.kind) for leaf in captured.leaves]


@pytest.mark.parametrize("kind", ["export", "export decomposed"])
def test_an_exported_program_has_its_signature(kind: str) -> None:
    found = kinds(graph_of(kind, Scaled(), (rows(3, HIDDEN), rows(3, HIDDEN))))
    assert found == [("inner.weight", PARAMETER), ("scale", BUFFER), ("x", INPUT), ("y", INPUT)]


def test_the_attributes_of_a_programs_module() -> None:
    gm = exported(Scaled(), (rows(3, HIDDEN), rows(3, HIDDEN))).module()
    view = View(gm.graph)
    leaves = [view.value(n).leaf for n in gm.graph.nodes if n.op in {"get_attr", "placeholder"}]
    assert {(leaf.path, leaf.kind) for leaf in leaves if leaf is not None} >= {*OF_MODEL, ("x", INPUT)}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("kind", ["post-grad, before", "post-grad, after"])
def test_in_a_pass_of_inductor_dynamos_sources_tell(kind: str, dynamic: bool) -> None:
    found = kinds(graph_of(kind, Scaled(), (rows(3, HIDDEN), rows(3, HIDDEN)), dynamic=dynamic))
    assert set(found) >= {*OF_MODEL, ("x", INPUT), ("y", INPUT)}
    assert len([kind for _, kind in found if kind is not INPUT]) == 2


def test_in_training_too() -> None:
    model = Scaled()
    model.inner.requires_grad_(True)
    seen: list[list[Any]] = []

    class Look(compat.custom_graph_pass()):  # type: ignore[misc]  # a base that each torch names elsewhere
        def __call__(self, graph: fx.Graph) -> None:
            gm: Any = graph.owning_module
            seen.append(leaves_of(gm) or [])
            raise RuntimeError("seen")

        def uuid(self) -> Any:
            return None

    import torch._inductor.config as config

    with (
        config.patch({"post_grad_custom_pre_pass": Look(), "force_disable_caches": True}),
        pytest.raises(Exception, match="seen"),
    ):
        torch.compile(model)(rows(3, HIDDEN), rows(3, HIDDEN))
    assert {(leaf.path, leaf.kind) for leaf in seen[0]} >= {*OF_MODEL, ("x", INPUT)}


def _bare(captured: Captured) -> fx.GraphModule:
    """The graph as a part that a serving system cut out: without what Dynamo wrote beside its inputs."""
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in captured.gm.graph.nodes:
        mapping[node] = graph.node_copy(node, lambda n: mapping[n])
        mapping[node].meta = {k: v for k, v in node.meta.items() if k == "example_value"}
    return fx.GraphModule(captured.gm, graph)


def test_a_part_of_a_graph_does_not_tell_and_a_site_in_it_is_found() -> None:
    bare = _bare(graph_of("dynamo", Net(plain), (rows(),)))
    arguments = [n.meta["example_value"] for n in bare.graph.find_nodes(op="placeholder")]

    real = [torch.randn(a.shape) for a in arguments]
    seen: list[tuple[list[Any], int]] = []

    class Look(compat.custom_graph_pass()):  # type: ignore[misc]  # a base that each torch names elsewhere
        def __call__(self, graph: fx.Graph) -> None:
            gm: Any = graph.owning_module
            leaves = leaves_of(gm)
            sites = find_sites(View(graph, leaves=leaves), rms_norm_gated_mlp)
            seen.append((leaves or [], sum(s.match is not None and s.reason is None for s in sites)))
            raise RuntimeError("seen")

        def uuid(self) -> Any:
            return None

    import torch._inductor.config as config

    patched = config.patch({"post_grad_custom_post_pass": Look(), "force_disable_caches": True})
    with patched, torch.no_grad(), pytest.raises(Exception, match="seen"):
        compat.compile_fx(bare, real, None)(*real)
    ((leaves, matches),) = seen
    assert {leaf.kind for leaf in leaves} == {LeafKind.UNTOLD}
    assert matches == 1


def test_weights_that_are_arguments_are_no_parameters() -> None:
    def body(m: Net, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        h = rms(m, x)
        f = torch.nn.functional
        return f.linear(f.silu(f.linear(h, gate)) * f.linear(h, m.up), m.down)

    net = Net(body)
    for kind in ("export", "export decomposed", "post-grad, before"):
        (site,) = find_sites(graph_of(kind, net, (rows(), net.gate.detach().clone())).view(), rms_norm_gated_mlp)
        assert site.reason is not None, kind
        assert site.reason.code == "NOT_A_PARAM", kind


# --- writes ---------------------------------------------------------------------------------------------------------


def _library() -> Any:
    library = torch.library.Library("fxfuse_test_aten", "FRAGMENT")
    library.define("fill(Tensor(a!) out, Tensor x, Tensor w) -> ()")
    library.impl("fill", lambda out, x, w: out.copy_(x * w), "CompositeExplicitAutograd")
    torch.library.register_fake("fxfuse_test_aten::fill", lambda out, x, w: None, lib=library)
    return library


def test_functionalized_ops_write_copies_and_the_epilogue_writes_inputs() -> None:
    library = _library()

    def body(m: Net, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        torch.ops.fxfuse_test_aten.fill(out, x, m.weight)
        y = plain(m, out)
        x.add_(1)
        return y

    captured = inductor_graph(Net(body), (rows(),), "post-grad, before")
    names = [(str(n.target), [t.name for t in targets]) for n, targets in Effects(captured.gm.graph).writes]
    assert names == [("aten.copy_.default", ["arg0_1"])]
    sites = find_sites(captured.view(), rms_norm_gated_mlp)
    assert [s.reason for s in sites if s.match is not None] == [None]
    del library


def test_a_weight_that_the_epilogue_writes_is_refused() -> None:
    def body(m: Net, x: torch.Tensor) -> torch.Tensor:
        y = plain(m, x)
        m.gate.add_(1)
        return y

    for kind in ("export", "post-grad, before"):
        (site,) = find_sites(graph_of(kind, Net(body), (rows(),)).view(), rms_norm_gated_mlp)
        assert site.reason is not None, kind
