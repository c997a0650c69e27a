"""What changes between calls and around them: shapes, caches, autocast, grad mode, checkpointing, graph breaks."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from end_to_end.tiny import (
    EVERY_PLACEMENT,
    PATTERN,
    PLACEMENTS,
    Block,
    Tiny,
    batch,
    close,
    compiled,
    count,
    graphs,
    placed,
    recorded,
    tiny_llama,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxfuse
from fxfuse.params.share import groups_of

# --- shapes ----------------------------------------------------------------------------------------------------------

SHAPES = [(2, 7), (2, 9), (3, 9), (4, 11), (1, 1), (1, 40), (2, 7)]


def graphs_for(model: Any, backend: Any, inputs: Iterable[Tensor], **kwargs: Any) -> int:
    """Graphs that a backend makes for these calls, each of which must equal eager."""
    torch._dynamo.reset()
    before = graphs()
    fast = torch.compile(model, backend=backend, **kwargs)
    for x in inputs:
        close(fast(x), model(x))
    return graphs() - before


@pytest.mark.parametrize(
    ("placement", "dynamic"), [("separate", None), ("share", None), ("share", True), ("separate", False)]
)
@torch.no_grad()
def test_no_more_graphs_than_torch_itself_makes(placement: str, dynamic: bool | None) -> None:
    model = Tiny()
    inputs = [torch.randn(*shape, 16) for shape in SHAPES]
    backend = fxfuse.Backend(inner="aot_eager", on_error="raise", **PLACEMENTS[placement])
    with recorded() as reports:
        found = graphs_for(model, backend, inputs, dynamic=dynamic)
    assert found <= graphs_for(model, "aot_eager", inputs, dynamic=dynamic)
    assert count(reports) == 2 * found
    assert len(groups_of(model)) == (2 if placement == "share" else 0)


@torch.no_grad()
def test_a_kernels_row_range_is_the_only_guard_that_is_added() -> None:
    """Naming a kernel for 1 to 16 rows makes one graph for few rows; more rows are a sentence, never another kernel."""
    _register_few_rows()
    model = Tiny(layers=1)
    fast = compiled(model, kernels={PATTERN: "few_rows"})
    for rows in (1, 5, 8):
        close(fast(batch(rows)), model(batch(rows)))
    with pytest.raises(fxfuse.OptionError, match=r"few_rows.*needs 0 to 16 rows"):
        fast(batch(40))


def _register_few_rows() -> None:
    from fxfuse.kernels import kernels_for
    from fxfuse.kernels.gated_mlp import plain

    if "few_rows" not in kernels_for(PATTERN):
        fxfuse.kernel(PATTERN, name="few_rows", rows=(0, 16), backward="autograd")(plain)


# --- language models: caches and generate ----------------------------------------------------------------------------


def decode(model: Any, call: Callable[..., Any], steps: int = 4) -> list[Tensor]:
    """Prefill and some decode steps over a static cache, with position ids; the logits of each."""
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=16)
    model(torch.ones(1, 1, dtype=torch.long), past_key_values=cache, use_cache=True)  # allocates
    cache.reset()
    tokens, position, out = torch.tensor([[3, 1, 4, 1, 5]]), 0, []
    for _ in range(steps):
        positions = torch.arange(position, position + tokens.shape[1])[None]
        logits = call(tokens, past_key_values=cache, position_ids=positions, use_cache=True).logits
        out.append(logits.clone())
        position += tokens.shape[1]
        tokens = logits[:, -1:].argmax(-1)
    return out


@pytest.mark.parametrize("placement", ["separate", "share"])
@torch.no_grad()
def test_decoding_over_a_static_cache(placement: str) -> None:
    model = tiny_llama()
    expected = decode(model, model)
    with recorded() as reports:
        found = decode(model, compiled(model, placement, inner="aot_eager", fullgraph=True))
    for f, e in zip(found, expected, strict=True):
        close(f, e)
    number = graphs()
    placed(model, placement, 2, reports[:1])
    assert count(reports) == 2 * len(reports)
    torch._dynamo.reset()
    decode(model, torch.compile(model, backend="aot_eager"))
    assert number <= graphs() - number


@pytest.mark.parametrize("given", ["name", "object"])
@torch.no_grad()
def test_generate_compiles_decode(given: str) -> None:
    from transformers import CompileConfig

    model = tiny_llama()
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    how: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "cache_implementation": "static"}
    expected = model.generate(tokens, disable_compile=True, **how)
    if given == "name":
        config = CompileConfig(backend="fxfuse", mode=None, options={"inner": "aot_eager"})
    else:
        config = CompileConfig(backend=fxfuse.Backend(inner="aot_eager"), mode=None)
    config._compile_all_devices = True
    with recorded() as reports:
        found = model.generate(tokens, compile_config=config, **how)
    assert torch.equal(found, expected)
    assert reports
    assert count(reports) == 2 * len(reports)


@torch.no_grad()
def test_generate_without_compiling_all_devices_makes_no_report() -> None:
    """The negative twin, and transformers' own rule on a CPU: nothing is compiled, so there is nothing to report."""
    from transformers import CompileConfig

    config = CompileConfig(backend="fxfuse", mode=None, options={"inner": "eager"})
    with recorded() as reports:
        tiny_llama(1).generate(
            torch.tensor([[3, 1, 4]]), do_sample=False, max_new_tokens=2, cache_implementation="static",
            compile_config=config,
        )  # fmt: skip
    assert reports == []


def test_backends_survive_copy_and_pickle() -> None:
    """`generate` copies its configuration; a copy that were unequal would be another compile."""
    backend = fxfuse.Backend(inner="eager", patterns=[PATTERN], weights={PATTERN: "inline"})
    assert copy.copy(backend) == backend
    assert copy.deepcopy(backend) == backend
    assert hash(copy.deepcopy(backend)) == hash(backend)


# --- autocast --------------------------------------------------------------------------------------------------------


@EVERY_PLACEMENT
@torch.no_grad()
def test_autocast_around_the_call(placement: str) -> None:
    """Its casts leave no node, and a fused op would not be cast: sites are left alone inside, and rewritten outside."""
    model, x = Tiny(), batch()
    fast = compiled(model, placement)
    for on in (False, True, False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=on), recorded() as reports:
            found, expected = fast(x), model(x)
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, atol=1e-5 if not on else 2e-2, rtol=1e-5 if not on else 2e-2)
        for report in reports:
            assert {(s.outcome, s.code) for s in report.sites} == (
                {("missed", "REGION")} if on else {("rewritten", "")}
            )
    assert graphs() == 2


@torch.no_grad()
def test_autocast_first_and_the_plain_call_after_it() -> None:
    model, x = Tiny(), batch()
    fast = compiled(model)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fast(x), model(x), atol=2e-2, rtol=2e-2)
    with recorded() as reports:
        close(fast(x), model(x))
    assert count(reports) == 2


class Casting(nn.Module):
    """Switches autocast on for its second layer only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(16, 32), Block(16, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        with torch.autocast("cpu", torch.bfloat16):
            return self.second(x)


@torch.no_grad()
def test_autocast_inside_the_model_is_a_region() -> None:
    model, x = Casting(), batch()
    with recorded() as reports:
        found = compiled(model, fullgraph=True)(x)
    torch.testing.assert_close(found, model(x), atol=2e-2, rtol=2e-2)
    rows = [(s.modules, s.outcome, s.code) for r in reports for s in r.sites]
    assert rows[0] == (("first.norm", "first.mlp"), "rewritten", "")
    assert rows[1][1:] == ("missed", "REGION")


# --- grad mode, train and eval, checkpointing ------------------------------------------------------------------------


@EVERY_PLACEMENT
def test_requires_grad_toggles(placement: str) -> None:
    model, x = Tiny(), batch()
    fast = compiled(model, placement, inner="aot_eager")
    for wanted in (True, False, True, False):
        model.requires_grad_(wanted)
        out = fast(x)
        assert out.requires_grad == wanted
        close(out, model(x))
        if wanted:
            out.sum().backward()
            assert all(p.grad is not None for p in model.parameters())
            model.zero_grad(set_to_none=True)
    assert graphs() == 2


@EVERY_PLACEMENT
def test_grad_mode_and_inference_mode_take_turns(placement: str) -> None:
    model, x = Tiny(), batch()
    fast = compiled(model, placement, inner="aot_eager")
    modes: list[Callable[[], Any]] = [torch.no_grad, torch.enable_grad, torch.inference_mode]
    for mode in [*modes, *modes]:
        with mode():
            close(fast(x), model(x))
        with torch.no_grad():
            model.layers[0].mlp.gate.weight.mul_(1.5)
    fast(x).sum().backward()
    assert all(p.grad is not None and not p.is_inference() for p in model.parameters())


@torch.inference_mode()
def test_sharing_under_inference_mode_leaves_a_model_that_can_train() -> None:
    model = Tiny(layers=1)
    with torch.inference_mode(False):
        trained, x = Tiny(layers=1), batch()
    fast = compiled(trained, "share")
    close(fast(x), trained(x))
    assert len(groups_of(trained)) == 1
    with torch.inference_mode(False):
        trained(x).sum().backward()
        torch.optim.SGD(trained.parameters(), lr=0.1).step()
    close(fast(x), trained(x))
    close(compiled(model, "share")(x), model(x))  # one that was made under inference mode


class WithDropout(nn.Module):
    """A model in which training and inference differ."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(16, 32)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.block(x))


@pytest.mark.parametrize("placement", ["separate", "inline", "share"])
def test_train_and_eval_take_turns(placement: str) -> None:
    model, x = WithDropout(), batch()
    fast = compiled(model, placement)
    for training in (True, False, True, False):
        model.train(training)
        with contextlib.nullcontext() if training else torch.no_grad(), recorded() as reports:
            torch.manual_seed(3)
            found = fast(x)
            torch.manual_seed(3)
            close(found, model(x))
        assert count(reports) == len(reports)
    assert graphs() == 2


class Checkpointed(nn.Module):
    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(16, 32) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return x


@pytest.mark.parametrize("placement", ["separate", "inline", "share"])
def test_sites_inside_activation_checkpointing(placement: str) -> None:
    model, x = Checkpointed(), batch()
    fast = compiled(model, placement, inner="aot_eager", fullgraph=True)
    with recorded() as reports:
        fast(x).square().sum().backward()
    (report,) = reports
    assert report.rewritten[PATTERN] == 2
    assert [s.modules for s in report.sites] == [(f"layers.{i}.norm", f"layers.{i}.mlp") for i in range(2)]
    found = [p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    model(x).square().sum().backward()
    for f, p in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(f, p.grad, atol=1e-4, rtol=1e-5)


@EVERY_PLACEMENT
@torch.no_grad()
def test_checkpointing_without_grad(placement: str) -> None:
    """The body of a higher-order op can be given no other input: then weights are read as they are, with a note."""
    model, x = Checkpointed(), batch()
    with recorded() as reports:
        close(compiled(model, placement)(x), model(x))
    assert count(reports) == 2
    for site in (s for r in reports for s in r.sites):
        assert site.weights == placement or (site.weights == "separate" and site.notes)


# --- modes, several compiles at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"backend": "fxfuse", "mode": "max-autotune"}, {"max_autotune": True}),
        ({"backend": "fxfuse", "mode": "default"}, {}),
        ({"backend": "fxfuse"}, {}),
        ({"backend": "fxfuse", "options": {"mode": "max-autotune"}}, {"max_autotune": True}),
        ({"backend": fxfuse.Backend(mode="max-autotune", weights="separate")}, {"max_autotune": True}),
        ({"backend": fxfuse.Backend(weights="inline"), "mode": "max-autotune"}, {"max_autotune": True}),
        ({"backend": fxfuse.Backend(mode="max-autotune"), "options": {"weights": "inline"}}, {"max_autotune": True}),
        ({"backend": fxfuse.Backend(inner_options={"epilogue_fusion": False})}, {"epilogue_fusion": False}),
        (
            {"backend": fxfuse.Backend(mode="max-autotune", inner_options={"max_autotune": False})},
            {"max_autotune": False},
        ),
    ],
)
@torch.no_grad()
def test_modes_reach_inductor(how: dict[str, Any], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def inductor(gm: torch.fx.GraphModule, examples: Any, config_patches: dict[str, Any] | None) -> Any:
        seen.append(dict(config_patches or {}))
        return gm.forward

    monkeypatch.setattr("fxfuse.compat.compile_fx", inductor)
    model, x = Tiny(layers=1), batch()
    with recorded() as reports:
        close(torch.compile(model, **how)(x), model(x))
    assert count(reports) == 1
    (patches,) = seen
    assert {key: patches.get(key) for key in expected} == expected
    assert bool(patches) == bool(expected)


@torch.no_grad()
def test_a_mode_through_the_real_inductor() -> None:
    model, x = Tiny(layers=1), batch()
    fast = torch.compile(model, backend="fxfuse", mode="reduce-overhead", fullgraph=True)
    with recorded() as reports:
        close(fast(x), model(x))
    assert count(reports) == 1


@torch.no_grad()
def test_two_copies_with_different_options_take_turns() -> None:
    model, x = Tiny(), batch()
    arms = {
        "separate": compiled(model, "separate"),
        "inline": compiled(model, "inline"),
        "off": compiled(model, kernels={PATTERN: "off"}),
        "share": compiled(model, "share"),
        "by name": torch.compile(model, backend="fxfuse", options={"inner": "eager", "paths": ["layers.1"]}),
    }
    with recorded() as reports:
        for _ in range(3):
            for fast in arms.values():
                close(fast(x), model(x))
            model.layers[0].mlp.up.weight.mul_(1.5)
    assert graphs() == len(arms) == len(reports)
    rows = [[(s.outcome, s.code, s.weights) for s in r.sites] for r in reports]
    assert rows == [
        [("rewritten", "", "separate")] * 2,
        [("rewritten", "", "inline")] * 2,
        [("kept", "DISABLED", "")] * 2,
        [("rewritten", "", "share")] * 2,
        [("kept", "DISABLED", ""), ("rewritten", "", "separate")],
    ]


@torch.no_grad()
def test_equal_backends_compile_once() -> None:
    model, x = Tiny(), batch()
    for _ in range(12):  # more than the recompile limit
        close(torch.compile(model, backend=fxfuse.Backend(inner="eager", weights="separate"))(x), model(x))
    assert graphs() == 1


@torch.no_grad()
def test_fullgraph_is_one_graph_or_an_error() -> None:
    model, x = Tiny(), batch()
    close(compiled(model, fullgraph=True)(x), model(x))
    assert graphs() == 1
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(Broken(), fullgraph=True)(x)


# --- graph breaks and compiling in place -----------------------------------------------------------------------------


class Broken(nn.Module):
    """A model whose graph breaks between its layers. (Not in a loop: Dynamo leaves such a frame alone.)"""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Tiny(layers=3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.decoder.layers[0](x)
        torch._dynamo.graph_break()
        x = self.decoder.layers[1](x)
        torch._dynamo.graph_break()
        x = self.decoder.layers[2](x)
        return self.decoder.norm(x)


class BrokenInside(nn.Module):
    """A model whose graph breaks within its second layer, between norm and MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(16, 32), Block(16, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        h = self.second.norm(x)
        torch._dynamo.graph_break()
        return x + self.second.mlp(h)


@torch.no_grad()
def test_graph_breaks_between_layers() -> None:
    model, x = Broken(), batch()
    paths = [(f"decoder.layers.{i}.norm", f"decoder.layers.{i}.mlp") for i in range(3)]
    report = fxfuse.explain(model, (x,))
    assert report.graphs == 3
    assert [s.modules for s in report.sites] == paths
    assert {s.outcome for s in report.sites} == {"rewritten"}
    assert len({s.graph for s in report.sites}) == 3
    for placement in ("separate", "share"):
        with recorded() as reports:
            close(compiled(model, placement)(x), model(x))
        assert count(reports) == 3
        model.decoder.layers[1].mlp.gate.weight.mul_(2)
        close(compiled(model, placement)(x), model(x))
    assert len(groups_of(model)) == 3


@torch.no_grad()
def test_a_graph_break_inside_a_site_leaves_it() -> None:
    model, x = BrokenInside(), batch()
    report = fxfuse.explain(model, (x,))
    assert report.rewritten[PATTERN] == 1
    assert [s.modules for s in report.sites if s.outcome == "rewritten"] == [("first.norm", "first.mlp")]
    assert "missed" in {s.outcome for s in report.sites}  # its halves are said, too
    close(compiled(model)(x), model(x))


class Nested(nn.Module):
    """A model below which another frame starts: paths there are relative, and are made absolute."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"inner": Broken()})

    def forward(self, x: Tensor) -> Tensor:
        return self.model["inner"](x) + 1


@torch.no_grad()
def test_paths_are_absolute_below_graph_breaks() -> None:
    report = fxfuse.explain(Nested(), (batch(),))
    prefixes = [f"model.inner.decoder.layers.{i}" for i in range(3)]
    assert [s.modules for s in report.sites] == [(f"{p}.norm", f"{p}.mlp") for p in prefixes]
    only = fxfuse.explain(Nested(), (batch(),), options={"paths": ["model.**.layers.1"]})
    assert [s.modules[0] for s in only.sites if s.outcome == "rewritten"] == [f"{prefixes[1]}.norm"]


@torch.no_grad()
def test_a_graph_break_in_a_loop_is_one_artifact_for_all_layers() -> None:
    class Looping(Broken):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self.decoder.layers:
                x = layer(x)
                torch._dynamo.graph_break()
            return x

    model, x = Looping(), batch()
    with recorded() as reports:
        close(compiled(model, "share")(x), model(x))
    assert count(reports) == len(reports) == 1
    assert len(groups_of(model)) == 3


@torch.no_grad()
def test_layers_compiled_one_by_one() -> None:
    model, x = Tiny(layers=3), batch()
    expected = model(x)
    for layer in model.layers:
        layer.compile(backend="fxfuse", options={"inner": "eager"})
    with recorded() as reports:
        close(model(x), expected)
    assert len(reports) == graphs() == 1  # one artifact serves all three
    assert [s.modules for s in reports[0].sites] == [("norm", "mlp")]
    report = fxfuse.explain(model, (x,))  # looks underneath, at the whole
    assert [s.modules for s in report.sites] == [(f"layers.{i}.norm", f"layers.{i}.mlp") for i in range(3)]
    close(model(x), expected)  # and leaves it compiled
    assert all(layer._compiled_call_impl is not None for layer in model.layers)


@torch.no_grad()
def test_model_compiled_in_place() -> None:
    model, x = Tiny(), batch()
    expected = model(x)
    model.compile(backend="fxfuse", options={"inner": "eager", "weights": "share"})
    with recorded() as reports:
        close(model(x), expected)
    placed(model, "share", 2, reports)
    assert type(model) is Tiny
    report = fxfuse.explain(model, (x,))
    assert report.rewritten[PATTERN] == 2


# --- scalars and weights as arguments --------------------------------------------------------------------------------


def run(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


@EVERY_PLACEMENT
@torch.no_grad()
def test_a_second_instance_with_another_eps(placement: str) -> None:
    """Dynamo makes eps an input of the graph then; it is bound, not baked in."""
    models, x = [Tiny(eps=eps) for eps in (1e-6, 0.5, 0.25, 0.75)], batch()
    fast = compiled(run, placement)
    with recorded() as reports:
        for model in [*models, *models]:
            close(fast(model, x), model(x))
    assert count(reports) == 2 * len(reports)
    found = graphs()
    torch._dynamo.reset()
    plain = torch.compile(run, backend="eager")
    for model in [*models, *models]:
        plain(model, x)
    assert found <= graphs() - found


def by_arguments(x: Tensor, scale: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    h = x.float()
    h = scale * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
    return F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)


def weights_of(block: Block) -> tuple[Tensor, ...]:
    return block.norm.weight, block.mlp.gate.weight, block.mlp.up.weight, block.mlp.down.weight


@EVERY_PLACEMENT
@torch.no_grad()
def test_parameters_as_arguments(placement: str) -> None:
    fast, x = compiled(by_arguments, placement), batch()
    with recorded() as reports:
        for _ in range(3):
            weights = weights_of(Block(16, 32))
            close(fast(x, *weights), by_arguments(x, *weights))
            weights[1].mul_(2)
            close(fast(x, *weights), by_arguments(x, *weights))
    assert [s.weights for r in reports for s in r.sites] == [placement]


@EVERY_PLACEMENT
@torch.no_grad()
def test_plain_tensors_as_arguments_are_no_parameters(placement: str) -> None:
    fast, x = compiled(by_arguments, placement, on_miss="silent"), batch()
    with recorded() as reports:
        for _ in range(2):
            weights = [w.detach().clone() for w in weights_of(Block(16, 32))]
            close(fast(x, *weights), by_arguments(x, *weights))
    assert {(s.outcome, s.code) for r in reports for s in r.sites} == {("missed", "NOT_A_PARAM")}
