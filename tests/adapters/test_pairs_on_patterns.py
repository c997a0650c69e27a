"""A layer with its layout as a kernel of a pattern: no model is named, and each that has the pattern is served."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxfuse
from fxfuse import PatternError
from fxfuse.adapters import from_hub_layer
from fxfuse.numerics.contract import within

pytest.importorskip("transformers", minversion="5.13")

from tests.adapters import pairs
from tests.adapters.tiny import IDS, LAYERS, tiny
from tests.support import Net, mlp, plain, rms, rows

NORM = {"weight": "post_attention_layernorm.weight", "eps": "post_attention_layernorm.variance_epsilon"}
MLP = {"gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight", "down": "mlp.down_proj.weight"}
FUSED = {**NORM, **MLP, "act": "mlp.act_fn"}
VARIANTS = {"norm": {"early"}, "proj": {"separate"}}
PATTERN = "rms_norm_gated_mlp"


def options(kernel: str, pattern: str = PATTERN, **more: Any) -> dict[str, Any]:
    return {"patterns": [pattern], "kernels": {pattern: kernel}, "on_miss": "silent", "on_error": "raise", **more}


def run(model: Any, *args: Any, kernel: str = "RMSNormMLP", **more: Any) -> Any:
    return torch.compile(model, backend=fxfuse.Backend(**options(kernel, inner="eager", **more)))(*args)


@pytest.mark.parametrize("opaque", [None, False])
@pytest.mark.parametrize("kind", ["Qwen3", "Llama"])
def test_one_declaration_serves_every_family(kind: str, opaque: bool | None) -> None:
    from_hub_layer(pairs.RMSNormMLP, PATTERN, FUSED, variants=VARIANTS, opaque=opaque)
    model = tiny(kind)
    torch.testing.assert_close(run(model, *IDS).logits, model(*IDS).logits, rtol=1e-5, atol=1e-6)
    (site, *others) = fxfuse.reports()[-1].sites
    assert len(others) == LAYERS - 1
    assert (site.outcome, site.kernel, site.weights, site.extra_bytes) == ("rewritten", "RMSNormMLP", "share", 0)


def gemma(m: Net, x: torch.Tensor) -> torch.Tensor:
    h = x.float()
    h = (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + m.weight.float())).to(x.dtype)
    return mlp(m, h)


def test_a_norm_of_another_kind_is_not_the_layer_s() -> None:
    from_hub_layer(pairs.RMSNormMLP, PATTERN, FUSED, variants=VARIANTS)
    with pytest.raises(fxfuse.OptionError, match=r"needs norm in \{early\}; the site has offset"):
        run(Net(gemma), rows())


@pytest.mark.parametrize("opaque", [None, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eps_is_the_site_s_own(opaque: bool | None, dtype: torch.dtype) -> None:
    from_hub_layer(pairs.RMSNormMLP, PATTERN, FUSED, variants=VARIANTS, opaque=opaque)

    def two(m: Net, x: torch.Tensor) -> torch.Tensor:
        return mlp(m, rms(m, mlp(m, rms(m, x, 1e-6)), 0.5))

    model, x = Net(two, dtype), rows(dtype=dtype)
    wide = Net(two, torch.float64)
    wide.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    assert within(run(model, x), model(x), wide(x.double()))
    assert fxfuse.reports()[-1].rewritten == {PATTERN: 2}


@pytest.mark.parametrize("layer", [pairs.UpFirst, pairs.OtherEps])
def test_a_layer_that_computes_something_else_is_kept_out(layer: type) -> None:
    from_hub_layer(layer, PATTERN, FUSED, variants=VARIANTS)
    model, x = Net(plain), rows()
    assert torch.equal(run(model, x, kernel=layer.__name__), model(x))
    assert {(s.outcome, s.code) for s in fxfuse.reports()[-1].sites} == {("kept", "VERIFY")}


@pytest.mark.parametrize(
    ("layer", "attributes", "fragment"),
    [
        (pairs.NamesNothing, FUSED, "no such parameter|names none of the modules' parameters"),
        (pairs.MakesNothing, FUSED, r"post_attention_layernorm\.factor of .*no such parameter"),
        (pairs.WrongDim, FUSED, r"the layout declares"),
        (pairs.RMSNormMLP, {**FUSED, "up_bias": "mlp.up_proj.bias"}, r"up_proj.bias"),
        (pairs.RMSNormMLP, {**FUSED, "act": "act_fn"}, "attributes are those of the modules that it takes"),
        (pairs.ReadsWhatIsNot, FUSED, "cannot be set up from Module, Module: AttributeError"),
    ],
)
def test_a_layout_that_does_not_fit_raises_where_it_is_given(layer: type, attributes: Any, fragment: str) -> None:
    with pytest.raises(PatternError, match=fragment):
        from_hub_layer(layer, PATTERN, attributes, variants=VARIANTS)


def test_a_layout_with_a_constructor_of_its_own_is_built_by_init() -> None:
    attributes = {"weight": "norm.weight", "eps": "norm.variance_epsilon"}

    def init(norm: Any) -> Any:
        return pairs.CustomRMSNormLayout(norm.weight.shape[0], norm.variance_epsilon)

    from_hub_layer(pairs.CustomRMSNorm, "rms_norm", attributes, variants={"norm": {"early"}}, init=init)
    model, x = Net(lambda m, x: rms(m, x, 0.1)), rows()
    torch.testing.assert_close(run(model, x, kernel="CustomRMSNorm", pattern="rms_norm"), model(x))
    assert fxfuse.reports()[-1].rewritten == {"rms_norm": 1}
    with pytest.raises(PatternError, match="init gives int for CustomRMSNorm"):
        from_hub_layer(
            pairs.CustomRMSNorm, "rms_norm", attributes, variants={"norm": {"early"}}, init=lambda norm: 3, name="again"
        )
