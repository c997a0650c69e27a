"""Kernels of transformers' KernelConfig run as they stand: on every model that has the modules, and on no other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import fxfuse
from fxfuse import OptionError, PatternError
from fxfuse.adapters import from_kernelconfig
from fxfuse.fingerprint import fingerprint
from fxfuse.kernels import kernels_for
from fxfuse.numerics.contract import within

pytest.importorskip("transformers", minversion="5.13")

from tests.adapters import pairs
from tests.adapters.tiny import IDS, LAYERS, tiny

NORM, MLP = "model.layers.*.post_attention_layernorm", "model.layers.*.mlp"
PAIR = (("RMSNorm", NORM), ("MLP", MLP))


def explained(model: Any, regions: Any, **more: Any) -> Any:
    options = {"patterns": [*regions], "on_error": "raise", **more}
    return fxfuse.explain(model, IDS, options=options)


def compiled(model: Any, regions: Any, **more: Any) -> Any:
    """The logits of a compile over eager, which raises where anything in it fails."""
    backend = fxfuse.Backend(patterns=[*regions], inner="eager", on_error="raise", **more)
    return torch.compile(model, backend=backend)(*IDS).logits


# --- the two examples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opaque", [None, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_pair_gives_what_eager_gives(opaque: bool | None, dtype: torch.dtype) -> None:
    model = tiny(dtype=dtype)
    eager = model(*IDS).logits
    exact = copy.deepcopy(model).double()(*IDS).logits
    regions = from_kernelconfig({PAIR: pairs.RMSNormMLP}, model, opaque=opaque)
    assert explained(model, regions).rewritten == {"RMSNormMLP": LAYERS}
    assert within(compiled(model, regions), eager, exact)
    (site, *_) = fxfuse.reports()[-1].sites
    assert (site.kernel, site.weights, site.extra_bytes) == ("RMSNormMLP", "share", 0)
    torch.testing.assert_close(model(*IDS).logits, eager, rtol=0, atol=0)


@pytest.mark.parametrize("opaque", [None, False])
def test_a_norm_by_its_class_replaces_every_norm(opaque: bool | None) -> None:
    model = tiny()
    eager = model(*IDS).logits
    regions = from_kernelconfig({"RMSNorm": pairs.CustomRMSNorm}, model, opaque=opaque)
    names = ("q_norm", "k_norm", "input_layernorm", "post_attention_layernorm", "norm")
    assert [r.name for r in regions] == [f"CustomRMSNorm_{name}" for name in names]
    rewritten = explained(model, regions).rewritten
    assert rewritten == {f"CustomRMSNorm_{name}": 1 if name == "norm" else LAYERS for name in names}
    torch.testing.assert_close(compiled(model, regions), eager, rtol=1e-5, atol=1e-6)


def test_the_same_pair_serves_another_family() -> None:
    model = tiny("Llama")
    regions = from_kernelconfig({PAIR: pairs.RMSNormMLP}, model)
    torch.testing.assert_close(compiled(model, regions), model(*IDS).logits, rtol=1e-5, atol=1e-6)
    assert fxfuse.reports()[-1].rewritten == {"RMSNormMLP": LAYERS}


def test_a_kernel_config_itself_is_taken() -> None:
    from transformers import KernelConfig

    config = KernelConfig({PAIR: pairs.RMSNormMLP})
    model = tiny()
    assert explained(model, from_kernelconfig(config, model)).rewritten == {"RMSNormMLP": LAYERS}
    assert list(config.kernel_mapping) == [PAIR], "it is left as it was"


# --- where the original goes wrong ------------------------------------------------------------------------------------


def test_modules_of_these_names_that_are_not_adjacent_raise() -> None:
    """Gemma 2 has another norm between the two: fused by name, its logits were 5.89 off."""
    model = tiny("Gemma2")
    regions = from_kernelconfig({PAIR: pairs.RMSNormMLP}, model)
    with pytest.raises(OptionError, match=r"'RMSNormMLP' at model\.layers\.0\.post_attention_layernorm.*not closed"):
        explained(model, regions)
    with pytest.raises(OptionError, match="not closed"):
        compiled(model, regions)


def test_adjacent_modules_of_another_function_are_kept() -> None:
    """Gemma 2's other norm is adjacent, and scales by 1 + w: the layer's forward is not what the modules compute."""
    model = tiny("Gemma2")
    mapping = [*pairs.FUSED]
    names = ("pre_feedforward_layernorm", "post_attention_layernorm")
    key = tuple((name, glob.replace(names[1], names[0])) for name, glob in PAIR)
    with pytest.raises(PatternError, match=r"pre_feedforward_layernorm\.scale"):
        from_kernelconfig({key: pairs.RMSNormMLP}, model)
    regions = from_kernelconfig({key: pairs.BeforeFeedforward}, model)
    report = explained(model, regions)
    assert {(s.outcome, s.code) for s in report.sites} == {("kept", "VERIFY")}
    assert mapping == pairs.FUSED


def test_a_glob_that_names_one_layer_fuses_that_one() -> None:
    model = tiny()
    one = tuple((name, glob.replace("*", "1")) for name, glob in PAIR)
    report = explained(model, from_kernelconfig({one: pairs.RMSNormMLP}, model))
    assert [s.modules[1] for s in report.sites if s.outcome == "rewritten"] == ["model.layers.1.mlp"]
    assert explained(model, from_kernelconfig({PAIR: pairs.RMSNormMLP}, model)).rewritten == {"RMSNormMLP": LAYERS}


def test_nothing_is_patched() -> None:
    model = tiny()
    text, keys = repr(model), [(k, v.clone()) for k, v in model.state_dict().items()]
    identities = {k: id(p) for k, p in model.named_parameters()}
    classes = {name: type(m) for name, m in model.named_modules()}
    regions = from_kernelconfig({PAIR: pairs.RMSNormMLP}, model)
    from_kernelconfig({PAIR: pairs.RMSNormMLP}, model)  # a second time adds nothing to the first
    before = explained(model, regions).rewritten
    compiled(model, regions)
    assert before == {"RMSNormMLP": LAYERS}
    assert repr(model) == text
    assert {name: type(m) for name, m in model.named_modules()} == classes
    assert {k: id(p) for k, p in model.named_parameters()} == identities
    for (key, value), (name, now) in zip(keys, model.state_dict().items(), strict=True):
        assert key == name
        assert torch.equal(value, now)
    assert fxfuse.explain(tiny(), IDS).rewritten.get("RMSNormMLP", 0) == 0, "another compile does not have it"


def test_updated_weights_are_seen() -> None:
    model = tiny()
    regions = from_kernelconfig({PAIR: pairs.RMSNormMLP}, model)
    fused = torch.compile(model, backend=fxfuse.Backend(patterns=[*regions], inner="eager", on_error="raise"))
    before = fused(*IDS).logits
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(3)
        model.model.layers[0].post_attention_layernorm.weight.add_(1)
    assert not torch.allclose(fused(*IDS).logits, before, atol=1e-4)
    torch.testing.assert_close(fused(*IDS).logits, model(*IDS).logits, rtol=1e-5, atol=1e-6)


def test_layers_that_differ_each_have_their_own() -> None:
    model = tiny()
    model.model.layers[1].post_attention_layernorm.variance_epsilon = 0.25
    regions = from_kernelconfig({PAIR: pairs.RMSNormMLP}, model)
    assert [r.name for r in regions] == [f"RMSNormMLP_{i}_post_attention_layernorm" for i in range(LAYERS)]
    assert sum(explained(model, regions).rewritten.values()) == LAYERS
    torch.testing.assert_close(compiled(model, regions), model(*IDS).logits, rtol=1e-5, atol=1e-6)


def test_gradients_are_eager_s() -> None:
    model = tiny().requires_grad_(True)
    twin = copy.deepcopy(model)
    regions = from_kernelconfig({PAIR: pairs.RMSNormMLP}, model, opaque=False)
    compiled(model, regions).square().sum().backward()
    assert fxfuse.reports()[-1].rewritten == {"RMSNormMLP": LAYERS}
    twin(*IDS).logits.square().sum().backward()
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_an_opaque_layer_does_not_serve_where_a_gradient_is_needed() -> None:
    model = tiny().requires_grad_(True)
    report = explained(model, from_kernelconfig({PAIR: pairs.RMSNormMLP}, model))
    assert {(s.outcome, s.code) for s in report.sites} == {("kept", "REQUIRES_GRAD")}


# --- one thing wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opaque", [None, False])
@pytest.mark.parametrize("layer", [pairs.UpFirst, pairs.OtherEps])
def test_a_layer_that_computes_something_else_is_kept_out(layer: type, opaque: bool | None) -> None:
    model = tiny()
    regions = from_kernelconfig({PAIR: layer}, model, opaque=opaque)
    assert {(s.outcome, s.code) for s in explained(model, regions).sites} == {("kept", "VERIFY")}
    torch.testing.assert_close(compiled(model, regions), model(*IDS).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("layer", "fragment"),
    [
        (pairs.NamesNothing, r"'mlp.upper_proj.weight' names none of the modules' parameters|up_proj.weight, and the"),
        (pairs.MakesNothing, r"makes model.layers.0.post_attention_layernorm.factor of .*no such parameter: unknown"),
        (pairs.LeavesOut, r"has the parameter model.layers.0.post_attention_layernorm.shift, which nothing in its"),
        (pairs.WrongDim, r"of shape \(24, 32\); the layout declares \(48, 16\)"),
        (
            pairs.ReadsWhatIsNot,
            r"ReadsWhatIsNotLayout, which takes .* cannot be set up from Qwen3RMSNorm, Qwen3MLP: Attr",
        ),
        (pairs.NoLayout, r"NoLayout replaces 2 modules, and no class NoLayoutLayout beside it says"),
        (pairs.TakesTwo, r"TakesTwo.forward takes hidden_states, residual; it is called with 1 input"),
        (nn.Module, "a layer is a class with a forward"),
        (pairs.Chunks, r"down_proj.weight is one of several that are made of model.layers.0.mlp.down_proj.weight"),
        (
            pairs.Interleaves,
            r"is made by Interleave\(dim=0\), which fxfuse has no transform for; valid are Concatenate",
        ),
        (pairs.HalfImported, r"conversion_mapping holds None; valid are transformers' WeightRenaming"),
    ],
)
def test_a_layout_that_does_not_fit_raises_where_it_is_given(layer: type, fragment: str) -> None:
    with pytest.raises(PatternError, match=fragment):
        from_kernelconfig({PAIR: layer}, tiny())


@pytest.mark.parametrize(
    ("key", "fragment"),
    [
        ((("RMSNorm", NORM.replace("post", "past")), ("MLP", MLP)), "Did you mean 'model.layers.*.post_attention_lay"),
        ((("RMSNorm", NORM), ("MLP", "model.layers.*.experts")), "names no module of Qwen3ForCausalLM"),
        ((("RMSNorm", NORM.replace("*", "9")), ("MLP", MLP.replace("*", "9"))), "names no module of Qwen3ForCausalLM"),
        ((("RMSNorm", NORM), ("MLP", "model.layers.0.mlp")), "layers.1.mlp|is not|to be fused"),
        ("LayerNorm", "no module of this class: unknown class 'LayerNorm'"),
        ((NORM, MLP), "a key is a class name, or a tuple of"),
        ((), "a key is a class name, or a tuple of"),
        (7, "a key is a class name, or a tuple of"),
    ],
)
def test_a_key_that_names_nothing_raises(key: Any, fragment: str) -> None:
    with pytest.raises(PatternError, match=fragment):
        from_kernelconfig({key: pairs.RMSNormMLP}, tiny())


@pytest.mark.parametrize("mapping", [{}, [], None, "RMSNorm"])
def test_a_mapping_is_needed(mapping: Any) -> None:
    with pytest.raises(PatternError, match="takes a KernelConfig or its mapping"):
        from_kernelconfig(mapping, tiny())


def test_a_layer_by_name_needs_the_package_that_loads_it() -> None:
    with pytest.raises(
        PatternError, match="the package 'kernels' is needed to load 'owner/repo:RMSNormMLP', and gives"
    ):
        from_kernelconfig({PAIR: "owner/repo:RMSNormMLP"}, tiny())
    with pytest.raises(
        PatternError, match="a layer is a class, or a string such as 'org/repo:Name'; given 'RMSNormMLP'"
    ):
        from_kernelconfig({PAIR: "RMSNormMLP"}, tiny())


def test_a_layer_that_changed_misses_the_cache() -> None:
    def key(layer: type, model: Any, opaque: bool | None = None) -> str:
        (one,) = from_kernelconfig({PAIR: layer}, model, opaque=opaque)
        return fingerprint(list(kernels_for(one).values()))

    model = tiny()
    same = key(pairs.RMSNormMLP, model)
    assert key(pairs.RMSNormMLP, tiny()) == same
    assert key(pairs.RMSNormMLP, tiny(rms_norm_eps=0.1)) != same
    assert key(pairs.RMSNormMLP, tiny(hidden_act="gelu")) != same
    others = [key(layer, model) for layer in (pairs.OtherEps, pairs.UpFirst)] + [key(pairs.RMSNormMLP, model, False)]
    assert len({same, *others}) == 4
