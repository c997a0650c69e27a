"""The examples of docs/near_misses.md: what a user reads of models that nearly have the headline pattern.

    python -m bench.near_misses           print them
    python -m bench.near_misses --write   write the page

Real architectures of transformers, tiny and random: the graphs are those of the large ones, layer by layer.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx

import fxfuse
from fxfuse.library import lookup

PAGE = Path(__file__).parents[1] / "docs" / "near_misses.md"
PATTERN = "rms_norm_gated_mlp"
LAYERS = 4


@dataclass(frozen=True)
class Example:
    """One architecture: what is near in it and why, in the words of a person, and the places to ask about."""

    title: str
    config: str
    says: str
    at: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def model(self) -> Any:
        import transformers

        config = getattr(transformers, self.config)(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=None, eos_token_id=None,
            **self.extra,
        )  # fmt: skip
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config).eval()


EXAMPLES = (
    Example(
        "OLMo2: the norm comes after",
        "Olmo2Config",
        """\
OLMo2 normalises what attention and MLP return, not what they are given: between the norm and the projections the
residual is added. No fused kernel for norm and MLP may reach over that sum.""",
    ),
    Example(
        "Gemma2: two norms around each part",
        "Gemma2Config",
        """\
`pre_feedforward_layernorm` feeds the MLP, so those are sites. `post_attention_layernorm`, which has the name of the
norm that feeds the MLP in Llama, does not: a fuser that goes by names joins the wrong two. Asked about that norm, the
pattern says how far it gets there.""",
        ("model.layers.0.post_attention_layernorm",),
        {"head_dim": 8},
    ),
    Example(
        "Qwen3-MoE: the router reads the norm",
        "Qwen3MoeConfig",
        """\
The projections are grouped matrix products over routed tokens, which is another operation; and were they not, the
router reads the norm's result, too.""",
        (),
        {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    Example(
        "BitNet: a norm inside the MLP",
        "BitNetConfig",
        "The activation is a squared ReLU, and before the last projection stands another norm, `ffn_sub_norm`.",
    ),
)


def section(example: Example) -> str:
    """The example as Markdown."""
    model = example.model()
    tokens = torch.arange(7)[None]
    options = {"patterns": [PATTERN], "kernels": {PATTERN: "plain"}, "on_miss": "silent", "reuse": "off"}
    with torch.no_grad():
        report = fxfuse.explain(model, (tokens,), {"use_cache": False}, options=options)
        parts = [f"## {example.title}\n\n{example.says}\n\n{_block(str(report))}"]
        graph = captured(model, tokens) if example.at else None
    for place in example.at:
        assert graph is not None
        answer = lookup(PATTERN, "patterns").explain(graph, at=place)
        parts.append(f"`pattern.explain(graph, at={place!r})`:\n\n{_block(str(answer))}")
    return "\n\n".join(parts)


def captured(model: Any, tokens: torch.Tensor) -> fx.GraphModule:
    """The graph that Dynamo captures of one call."""
    seen: list[fx.GraphModule] = []

    def look(gm: fx.GraphModule, examples: list[Any]) -> Any:
        seen.append(gm)
        return gm.forward

    torch._dynamo.reset()
    torch.compile(model, backend=look, fullgraph=True)(tokens, use_cache=False)
    return seen[0]


def page() -> str:
    """The whole page."""
    import transformers

    head = f"""\
# Near misses

What `fxfuse.explain` says of models that nearly have RMSNorm in front of a gated MLP (`{PATTERN}`), and why
not quite. Tiny random models of transformers {transformers.__version__}, {LAYERS} layers, made by
`python -m bench.near_misses --write`. The codes are explained in [reasons.md](reasons.md).
"""
    return "\n\n".join([head.rstrip(), *map(section, EXAMPLES)]) + "\n"


def _block(text: str) -> str:
    lines = [line for line in text.splitlines() if not line.startswith("time: ")]
    return "```text\n" + re.sub(r" \(\d+\.\d+ s\)", "", "\n".join(lines).strip()) + "\n```"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} instead of printing it")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page())


if __name__ == "__main__":
    main()
