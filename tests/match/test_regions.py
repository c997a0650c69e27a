"""Regions: sites given by module paths, required to hang together, trusted only after a numerical check."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxfuse
from fxfuse import OptionError, PatternError, region
from tests.support import capture

PAIR = ("model.layers.*.post_attention_layernorm", "model.layers.*.mlp")
IDS = (torch.arange(12).reshape(2, 6),)


def tiny(kind: str) -> Any:
    import transformers

    name = {"llama": "Llama", "gemma2": "Gemma2"}[kind]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval().requires_grad_(False)


def normed(x: Any, weight: Any, eps: float) -> Any:
    h = x.float()
    return weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def made(name: str, *globs: str, faulty: bool = False) -> fxfuse.Pattern:
    """A region with a kernel of its own."""
    one = region(*(globs or PAIR), name=name)

    @fxfuse.kernel(one, name="by_hand", default=True)
    def by_hand(
        x: Any, post_attention_layernorm_weight: Any, mlp_gate_proj_weight: Any, mlp_up_proj_weight: Any,
        mlp_down_proj_weight: Any, constants: Any,
    ) -> Any:  # fmt: skip
        h = normed(x, post_attention_layernorm_weight, constants[-1])
        gate, up = F.linear(h, mlp_gate_proj_weight), F.linear(h, mlp_up_proj_weight)
        return F.linear((F.relu if faulty else F.silu)(gate) * up, mlp_down_proj_weight)

    return one


def test_every_layer_is_a_site_and_the_result_is_eager_s() -> None:
    model = tiny("llama")
    one = made("by_path")
    report = fxfuse.explain(model, IDS, options={"patterns": [one]})
    layers = len(model.model.layers)
    assert report.rewritten == {"by_path": layers}
    assert report.sites[0].modules == ("model.layers.0.post_attention_layernorm", "model.layers.0.mlp")
    eager = model(*IDS).logits
    compiled = torch.compile(model, backend=fxfuse.Backend(patterns=[one], inner="eager"))
    assert torch.allclose(compiled(*IDS).logits, eager, atol=1e-5)


def test_one_layer_by_its_number() -> None:
    report = fxfuse.explain(
        tiny("llama"), IDS, options={"patterns": [made("one", *(g.replace("*", "1") for g in PAIR))]}
    )
    assert [s.modules[1] for s in report.sites] == ["model.layers.1.mlp"]


def test_modules_that_are_not_adjacent_raise() -> None:
    """Gemma 2 has modules of these names, and a norm between them: fused by name they gave wrong logits."""
    with pytest.raises(
        OptionError, match=r"region 'pair' at model\.layers\.0\.post_attention_layernorm.* is not closed"
    ):
        fxfuse.explain(tiny("gemma2"), IDS, options={"patterns": [made("pair")]})
    good = region("model.layers.*.pre_feedforward_layernorm", "model.layers.*.mlp", name="adjacent")
    report = fxfuse.explain(tiny("gemma2"), IDS, options={"patterns": [good]})
    assert report.matched["adjacent"] == len(tiny("gemma2").model.layers)
    assert {s.code for s in report.sites} == {"NO_KERNEL"}


def test_a_norm_that_something_else_reads_raises_with_its_reader() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.a, self.b = nn.RMSNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Any) -> Any:
            h = self.norm(x)
            return self.a(h) + self.b(h)

    with pytest.raises(OptionError, match=r"is not closed: .*\(norm\) is read by \w+ \(b\), outside the region"):
        fxfuse.explain(Block(), (torch.randn(2, 8),), options={"patterns": [region("norm", "a")]})
    report = fxfuse.explain(Block(), (torch.randn(2, 8),), options={"patterns": [region("norm")]})
    assert report.matched["norm"] == 1


def test_a_faulty_kernel_is_found_out() -> None:
    report = fxfuse.explain(tiny("llama"), IDS, options={"patterns": [made("faulty", faulty=True)]})
    assert {(s.outcome, s.code) for s in report.sites} == {("kept", "VERIFY")}


def test_a_kernel_that_lacks_an_operand_names_it() -> None:
    one = region(*PAIR, name="too_little")

    @fxfuse.kernel(one, name="forgets", default=True)
    def forgets(x: Any, post_attention_layernorm_weight: Any) -> Any:
        return x

    report = fxfuse.explain(tiny("llama"), IDS, options={"patterns": [one]})
    assert {s.code for s in report.sites} == {"NO_KERNEL"}
    assert "does not take mlp_down_proj_weight, which the site has" in report.sites[0].reason

    @fxfuse.kernel(one, name="invents", default=True)
    def invents(x: Any, nonsense: Any) -> Any:
        return x

    report = fxfuse.explain(tiny("llama"), IDS, options={"patterns": [one]})
    assert "takes nonsense, which the site does not have; it has constants, mlp_down" in report.sites[0].reason


@pytest.mark.parametrize(
    ("globs", "fragment"),
    [
        ((), "region takes module paths such as"),
        (("",), "region takes module paths such as"),
        ((1,), "region takes module paths such as"),
        (("model.layers.*.a", "model.layers.0.b"), "the same wildcards"),
        (("model.layers.*.a", "model.layers.**.b"), "the same wildcards"),
    ],
)
def test_bad_globs(globs: Any, fragment: str) -> None:
    with pytest.raises(PatternError, match=fragment):
        region(*globs)


def test_names_and_pickles() -> None:
    one = region("a.*.norm", "a.*.mlp", priority=2)
    assert one.name == "norm_mlp"
    again = pickle.loads(pickle.dumps(one))
    assert (again.name, again.globs, again.priority) == (one.name, one.globs, one.priority)
    with pytest.raises(PatternError, match="a region's name is an identifier"):
        region("model.layers.0")


def test_a_region_can_be_asked_about_a_graph() -> None:
    gm, _ = capture(tiny("llama"), *IDS)
    one = made("asked")
    first, second = one.match(gm)
    assert set(first.captures) >= {"x", "mlp_gate_proj_weight", "constants"}
    assert not set(first.nodes) & set(second.nodes)
    assert one.explain(gm).matched == {"asked": 2}
    assert one.describe().endswith("  modules: model.layers.*.post_attention_layernorm\n  modules: model.layers.*.mlp")
