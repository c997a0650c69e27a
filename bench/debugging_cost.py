"""What a report costs that nobody reads, of the processor time that fxfuse itself takes for a compile.

python -m bench.debugging_cost

A captured graph is compiled with the default options, but for Inductor, which hands the graph back. Counted as the
report's is everything that only a report needs: taking down sites with their names, reasons, captures and nodes, the
counts of patterns, keeping and publishing. Both times are of one run, so that a busy machine slows both; the median of
the runs' shares, and the smallest.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import fx

from bench.debugging_models import LAYERS, Blocks, Decoder, Lora, PostNorm, Router, batch
from fxfuse import backend, compat, engine, recording
from fxfuse.options import parse

RUNS = 15
DEEP = 30
BLOCKS: dict[str, Callable[[], Any]] = {
    "blocks that are sites": Blocks,
    "blocks with a sum in between": PostNorm,
    "blocks whose norm a router reads": Router,
    "blocks with adapters": Lora,
}
ONLY_FOR_REPORTS = (
    (recording.Recorder, ("begin", "searched", "site", "take", "records", "totals", "sites")),
    (engine._Work, ("_site", "_take_down")),
    (backend, ("finish", "will_be_read")),
)


def captured(model: Any, *args: Any, **keywords: Any) -> tuple[fx.GraphModule, list[Any]]:
    """The graph that Dynamo captures of one call, with its inputs."""
    seen: list[tuple[fx.GraphModule, list[Any]]] = []

    def look(gm: fx.GraphModule, examples: list[Any]) -> Any:
        seen.append((gm, list(examples)))
        return gm.forward

    torch._dynamo.reset()
    torch.compile(model, backend=look, fullgraph=True)(*args, **keywords)
    return seen[0]


def hugging_face(kind: str) -> tuple[fx.GraphModule, list[Any]]:
    """The graph of a tiny model of transformers, with attention and all."""
    import transformers

    config = getattr(transformers, kind)(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=DEEP, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    return captured(model, torch.arange(7)[None], use_cache=False)


@contextlib.contextmanager
def timed() -> Iterator[list[float]]:
    """Seconds spent for reports inside the block, in one item."""
    spent = [0.0]
    inside = False

    def timer(original: Any) -> Any:
        def run(*args: Any, **more: Any) -> Any:
            nonlocal inside
            if inside:
                return original(*args, **more)
            inside = True
            start = time.thread_time()
            try:
                return original(*args, **more)
            finally:
                spent[0] += time.thread_time() - start
                inside = False

        return run

    with contextlib.ExitStack() as stack:
        for owner, names in ONLY_FOR_REPORTS:
            for name in names:
                stack.enter_context(mock.patch.object(owner, name, timer(getattr(owner, name))))
        yield spent


def shares(gm: fx.GraphModule, examples: list[Any], runs: int) -> tuple[list[float], list[float]]:
    """Of each run, the share of its processor time that went into the report; and its milliseconds in all."""
    parsed = parse({})
    found, times = [], []
    with mock.patch.object(compat, "compile_fx", lambda gm, *_: gm.forward), timed() as spent:
        for run in range(runs + 1):
            gc.collect()
            gc.disable()  # a collection looks at everything, and falls to whoever makes the next object
            spent[0] = 0.0
            start = time.thread_time()
            backend.compile_graph(gm, examples, parsed)
            whole = time.thread_time() - start
            gc.enable()
            if run:  # the first one fills caches
                found.append(spent[0] / whole)
                times.append(whole * 1e3)
    return found, times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS)
    runs = parser.parse_args().runs
    print(f"torch {torch.__version__}, {runs} runs")
    with torch.no_grad():
        graphs = {
            f"{DEEP} layers of Llama (all rewritten)": hugging_face("LlamaConfig"),
            f"{DEEP} layers of OLMo2 (all near misses)": hugging_face("Olmo2Config"),
            **{
                f"{LAYERS * 5} {n}": captured(Decoder([m() for _ in range(LAYERS * 5)]), batch())
                for n, m in BLOCKS.items()
            },
        }
        for name, (gm, examples) in graphs.items():
            found, times = shares(gm, examples, runs)
            share = f"{100 * statistics.median(found):.1f} % (smallest {100 * min(found):.1f} %)"
            print(f"{name:40} {len(gm.graph.nodes):5} nodes {statistics.median(times):6.0f} ms  reports {share}")


if __name__ == "__main__":
    main()
