"""Layers of the `kernels` package as kernels of a pattern: tried at each site, tracing or opaque as they say."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

import fxfuse
from fxfuse import PatternError
from fxfuse.adapters import from_hub_layer
from fxfuse.numerics.contract import within
from tests.adapters import hub_layers
from tests.adapters.tiny import IDS, tiny
from tests.support import Net, mlp, rms, rows

NORM = {"weight": "weight", "eps": "variance_epsilon"}
EARLY = {"norm": {"early"}}
MLP = {"gate": "gate_proj.weight", "up": "up_proj.weight", "down": "down_proj.weight"}


def options(pattern: str, kernel: str, **more: Any) -> dict[str, Any]:
    return {"patterns": [pattern], "kernels": {pattern: kernel}, "on_miss": "silent", "on_error": "raise", **more}


def site(model: Any, *args: Any, **more: Any) -> Any:
    (only,) = fxfuse.explain(model, args, options=options(**more)).sites
    return only


def run(model: Any, *args: Any, **more: Any) -> Any:
    return torch.compile(model, backend=fxfuse.Backend(**options(inner="eager", **more)))(*args)


def exact(function: Any, model: Net, x: torch.Tensor) -> torch.Tensor:
    wide = Net(function, torch.float64)
    wide.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    return wide(x.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", [hub_layers.Norm, hub_layers.Traced])
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_a_norm_gives_what_eager_gives(layer: type, dtype: torch.dtype, eps: float) -> None:
    from_hub_layer(layer, "rms_norm", NORM, variants=EARLY, like="x")

    def body(m: Net, x: torch.Tensor) -> torch.Tensor:
        return rms(m, x, eps)

    model, x = Net(body, dtype), rows(dtype=dtype)
    assert site(model, x, pattern="rms_norm", kernel=layer.__name__).outcome == "rewritten"
    got = run(model, x, pattern="rms_norm", kernel=layer.__name__)
    assert within(got, model(x), exact(body, model, x))
    assert got.dtype == dtype


def test_one_declaration_serves_every_model() -> None:
    pytest.importorskip("transformers")
    from_hub_layer(hub_layers.Norm, "rms_norm", NORM, variants=EARLY, like="x")
    for kind in ("Llama", "Qwen3", "Mistral"):
        model = tiny(kind, num_hidden_layers=1)
        torch._dynamo.reset()
        got = run(model, *IDS, pattern="rms_norm", kernel="Norm").logits
        torch.testing.assert_close(got, model(*IDS).logits, rtol=1e-5, atol=1e-6)
        assert fxfuse.reports()[-1].rewritten["rms_norm"] == (5 if kind == "Qwen3" else 3)


def test_a_layer_of_another_variant_is_not_used() -> None:
    from_hub_layer(hub_layers.Norm, "rms_norm", NORM, variants=EARLY, like="x")

    def gemma(m: Net, x: torch.Tensor) -> torch.Tensor:
        h = x.float()
        return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + m.weight.float())).to(x.dtype)

    with pytest.raises(fxfuse.OptionError, match=r"needs norm in \{early\}; the site has offset"):
        site(Net(gemma), rows(), pattern="rms_norm", kernel="Norm")


def test_a_layer_that_computes_something_else_is_kept_out() -> None:
    from_hub_layer(hub_layers.NormOfAnotherKind, "rms_norm", NORM, variants=EARLY, like="x")
    model, x = Net(rms), rows()
    found = site(model, x, pattern="rms_norm", kernel="NormOfAnotherKind")
    assert (found.outcome, found.code) == ("kept", "VERIFY")
    assert found.numbers.fused_max > 0.1
    assert torch.equal(run(model, x, pattern="rms_norm", kernel="NormOfAnotherKind"), model(x))


@pytest.mark.parametrize(
    ("layer", "said"),
    [(hub_layers.NormThatWrites, "writes to its operand x"), (hub_layers.NormInAnotherDtype, "returned torch.float64")],
)
def test_a_layer_that_breaks_its_promise_is_kept_out(layer: type, said: str) -> None:
    from_hub_layer(layer, "rms_norm", NORM, variants=EARLY, like="x")
    found = site(Net(rms), rows(), pattern="rms_norm", kernel=layer.__name__)
    assert (found.outcome, found.code) == ("kept", "VERIFY")
    assert said in found.reason


def test_a_layer_that_nothing_can_trace_must_say_what_its_result_is_like() -> None:
    from_hub_layer(hub_layers.Norm, "rms_norm", NORM, variants=EARLY)
    found = site(Net(rms), rows(), pattern="rms_norm", kernel="Norm")
    assert (found.outcome, found.code) == ("kept", "VERIFY")
    with pytest.raises(PatternError, match="like='hidden' names no operand of Norm; it has x, weight, eps"):
        from_hub_layer(hub_layers.Norm, "rms_norm", NORM, variants=EARLY, like="hidden", name="again")


def test_gradients_are_what_the_layer_says() -> None:
    from_hub_layer(hub_layers.Traced, "rms_norm", NORM, variants=EARLY)
    from_hub_layer(hub_layers.TracedWithoutBackward, "rms_norm", NORM, variants=EARLY)
    from_hub_layer(hub_layers.Norm, "rms_norm", NORM, variants=EARLY, like="x")
    model, x = Net(rms).requires_grad_(True), rows().requires_grad_(True)
    run(model, x, pattern="rms_norm", kernel="Traced").square().sum().backward()
    got, model.weight.grad, mine, x.grad = model.weight.grad, None, x.grad, None
    model(x).square().sum().backward()
    torch.testing.assert_close((got, mine), (model.weight.grad, x.grad))
    got, mine = model.weight.grad, x.grad
    from_hub_layer(hub_layers.Norm, "rms_norm", NORM, variants=EARLY, like="x", backward="autograd", name="run_again")
    model.weight.grad = x.grad = None
    run(model, x, pattern="rms_norm", kernel="run_again").square().sum().backward()
    torch.testing.assert_close((got, mine), (model.weight.grad, x.grad))
    for layer in ("TracedWithoutBackward", "Norm"):
        with pytest.raises(fxfuse.OptionError, match="has no backward, and the site needs one"):
            site(model, x, pattern="rms_norm", kernel=layer)


def test_an_mlp_with_its_activation_as_an_attribute() -> None:
    """One layer for every activation that is a function, where one that hard-codes its own is found out."""
    attributes = {**MLP, "act": "act_fn"}
    from_hub_layer(hub_layers.SwiGLUMLP, "gated_mlp", attributes, variants={"proj": {"separate"}})
    from_hub_layer(hub_layers.HardcodedMLP, "gated_mlp", attributes, variants={"proj": {"separate"}})
    gelu = Net(lambda m, x: torch.nn.functional.linear(
        torch.nn.functional.gelu(x @ m.gate.t()) * (x @ m.up.t()), m.down))  # fmt: skip
    silu, x = Net(mlp), rows()
    for model in (silu, gelu):
        torch.testing.assert_close(run(model, x, pattern="gated_mlp", kernel="SwiGLUMLP"), model(x))
        assert fxfuse.reports()[-1].rewritten == {"gated_mlp": 1}
    assert site(silu, x, pattern="gated_mlp", kernel="HardcodedMLP").outcome == "rewritten"
    assert site(gelu, x, pattern="gated_mlp", kernel="HardcodedMLP").code == "VERIFY"


def test_a_layer_does_not_take_a_site_with_more_than_it_reads() -> None:
    from_hub_layer(hub_layers.HardcodedMLP, "gated_mlp", MLP, variants={"proj": {"separate"}, "act": {"silu"}})
    biased = Net(lambda m, x: torch.nn.functional.linear(
        torch.nn.functional.silu(x @ m.gate.t()) * (x @ m.up.t()), m.down, m.down_bias))  # fmt: skip
    with pytest.raises(fxfuse.OptionError, match="does not take down_bias, which the site has"):
        site(biased, rows(), pattern="gated_mlp", kernel="HardcodedMLP")
    more = {**MLP, "down_bias": "down_proj.bias"}
    alternatives = {"proj": {"separate"}, "act": {"silu"}}
    from_hub_layer(hub_layers.HardcodedMLP, "gated_mlp", more, variants=alternatives, name="biased")
    assert torch.allclose(run(biased, rows(), pattern="gated_mlp", kernel="biased"), biased(rows()), atol=1e-6)
    with pytest.raises(fxfuse.OptionError, match="reads down_bias, which the site does not have"):
        site(Net(mlp), rows(), pattern="gated_mlp", kernel="biased")


@pytest.mark.parametrize(
    ("layer", "attributes", "more", "fragment"),
    [
        (
            hub_layers.Norm,
            NORM,
            {},
            r"has the choice 'norm' \(early, late, .*\), and nothing says which of it Norm",
        ),
        (hub_layers.Norm, NORM, {"variants": {"norm": {"earlier"}}}, "unknown norm 'earlier'"),
        (hub_layers.Norm, NORM, {"variants": {**EARLY, "act": {"silu"}}}, "unknown choice of rms_norm 'act'"),
        (hub_layers.Norm, {"scale": "weight"}, {"variants": EARLY}, "unknown operand of rms_norm 'scale'"),
        (hub_layers.Norm, {"weight": "weight"}, {"variants": EARLY}, "is told nothing of eps of rms_norm"),
        (hub_layers.Norm, {**NORM, "norm": "kind"}, {}, "norm of rms_norm cannot be an attribute: none of early"),
        (hub_layers.Norm, NORM, {"variants": EARLY, "inputs": ("weight",)}, "weight of rms_norm is no Input"),
        (hub_layers.Norm, NORM, {"variants": EARLY, "inputs": ("norm",)}, "norm of rms_norm is no Input"),
        (
            hub_layers.Norm,
            NORM,
            {"variants": EARLY, "backward": "mine"},
            "backward is None or 'autograd'; given 'mine'",
        ),
        (
            hub_layers.Norm,
            NORM,
            {"variants": EARLY, "inputs": ("x", "x")},
            "forward takes hidden_states; it is called w",
        ),
        (nn.Linear(2, 2), NORM, {"variants": EARLY}, "a layer is a class, or a string"),
        ({"cuda": hub_layers.Norm, "rocm": hub_layers.Norm}, NORM, {}, "adapted for one device and mode at a time"),
    ],
)
def test_what_does_not_fit_raises_where_it_is_given(
    layer: Any, attributes: Any, more: dict[str, Any], fragment: str
) -> None:
    with pytest.raises(PatternError, match=fragment):
        from_hub_layer(layer, "rms_norm", attributes, **more)


def test_a_second_of_the_same_name_raises() -> None:
    from_hub_layer(hub_layers.Traced, "rms_norm", NORM, variants=EARLY)
    with pytest.raises(PatternError, match="already has a kernel 'Traced'"):
        from_hub_layer(hub_layers.Traced, "rms_norm", NORM, variants=EARLY)


def test_the_package_loads_a_layer_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Repository:
        def __init__(self, **where: Any) -> None:
            asked.append(where)

        def load(self) -> type:
            return hub_layers.Traced

    package = types.ModuleType("kernels")
    package.LayerRepository = package.LocalLayerRepository = Repository  # type: ignore[attr-defined]  # of a stand-in
    monkeypatch.setitem(sys.modules, "kernels", package)
    from_hub_layer(("owner/repo:Traced", {"revision": "main"}), "rms_norm", NORM, variants=EARLY)
    from_hub_layer({"cpu": {"inference": "owner/repo:Traced"}}, "rms_norm", NORM, variants=EARLY, name="again")
    assert asked == [
        {"repo_id": "owner/repo", "layer_name": "Traced", "revision": "main"},
        {"repo_id": "owner/repo", "layer_name": "Traced", "version": 1},
    ]
    model, x = Net(rms), rows()
    assert torch.allclose(run(model, x, pattern="rms_norm", kernel="again"), model(x), atol=1e-6)
