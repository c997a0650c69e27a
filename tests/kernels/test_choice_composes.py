"""A measured choice beside what torch does around it: caches on disk, max-autotune, CUDA graphs, exported programs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.tiny import PATTERN, Tiny, batch, close, recorded

import fxfuse
from fxfuse.kernels import kernels_for, registry
from fxfuse.kernels.gated_mlp import plain

# --- a warm start in a new process: two GEMMs, for which nothing needs a C++ compiler ---------------------------------

PACK = """
import torch.nn.functional as F
from fxfuse import Dim, Input, Param, cast, kernel, pattern
import torch

D = Dim("hidden")

@pattern("their_pair")
def their_pair(x=Input(..., D), first=Param(D, D), second=Param(D, D)):
    return F.linear(F.linear(x, first), second)

@their_pair.constraint
def small(m):
    m.require(m.sizes[D] <= {limit}, "too large", at=m.x)

@kernel(their_pair, name="safe", default=True)
def safe(x, first, second):
    return F.linear(F.linear(x, first), second)

@kernel(their_pair, name="wide", derive={{"both": {transform}}})
def wide(x, first, both):
    return F.linear(F.linear(x, first), both.to(x.dtype))
"""

MAIN = """
import json, sys, torch, fxfuse
from torch._dynamo.utils import counters
from fxfuse import machine, results
from fxfuse.kernels import kernels_for
from fxfuse.kernels.sources import source_of
from fxfuse.results import LEFT_ALONE, Arm, Entry, Shape, Versions

said, weights = json.loads(sys.argv[1]), sys.argv[2]
known = kernels_for(fxfuse.Backend(add=["their_pack::their_pair"]).options.patterns[-1])
arms = {n: Arm(t, t, t, source_of(known[n]) if n in known else "") for n, t in said.items()}
shape = Shape("their_pack::their_pair", (), ("first", "second", "x"), "float32", 4, (("hidden", 8),))
results.save([Entry(shape, machine.machine_of("cpu"), Versions.here(), arms)])

torch.manual_seed(0)
model = torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=False) for _ in range(2))).requires_grad_(False)
x = torch.ones(4, 8)
options = {"patterns": ["their_pack::their_pair"], "on_error": "raise", "weights": weights, "extra_memory": 4.0}
with torch.no_grad():
    found = torch.compile(model, backend="fxfuse", options=options)(x)
    torch.testing.assert_close(found, model(x))
(site,) = fxfuse.reports()[-1].sites
print(json.dumps({
    "kernel": site.kernel,
    "hit": counters["aot_autograd"]["autograd_cache_hit"] + counters["inductor"]["fxgraph_cache_hit"] > 0,
    "miss": counters["aot_autograd"]["autograd_cache_miss"] + counters["inductor"]["fxgraph_cache_miss"] > 0,
}))
"""

WON = {"left alone": 2.0, "safe": 1.9, "wide": 1.0}


def run(folder: Path, said: dict[str, float], weights: str = "copy", **page: Any) -> dict[str, Any]:
    (folder / "their_pack.py").write_text(
        PACK.format(**{"limit": 64, "transform": 'cast("second", torch.float32)', **page})
    )
    info = folder / "their_pack-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-pack\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fxfuse.patterns]\ntheir_pack = their_pack\n")
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "FXFUSE_CACHE_DIR": str(folder / "results"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", MAIN, json.dumps(said), weights]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


HIT, MISS = {"hit": True, "miss": False}, {"hit": False, "miss": True}


@pytest.mark.slow
def test_a_changed_measurement_pattern_transform_or_option_misses(tmp_path: Path) -> None:
    assert run(tmp_path, WON) == {"kernel": "wide", **MISS}
    assert run(tmp_path, WON) == {"kernel": "wide", **HIT}
    assert run(tmp_path, {**WON, "wide": 1.1}) == {"kernel": "wide", **MISS}, "another figure, the same kernel"
    assert run(tmp_path, {**WON, "wide": 1.1}, limit=65) == {"kernel": "wide", **MISS}, "another constraint"
    other = 'cast("second", torch.float64)'
    assert run(tmp_path, {**WON, "wide": 1.1}, transform=other) == {"kernel": "wide", **MISS}, "another transform"
    changed = run(tmp_path, {**WON, "wide": 1.1}, "separate")
    assert (changed["kernel"], changed["miss"]) == ("safe", True), "another option, and so another graph"


# --- modes, graphs and programs ---------------------------------------------------------------------------------------


@torch.library.custom_op("fxfuse_tests::composed_scale", mutates_args=())
def scale(x: torch.Tensor) -> torch.Tensor:
    return x * 1.0


@scale.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@pytest.fixture
def call_node() -> Iterator[str]:
    """A kernel whose last operation is one call node, as a Triton kernel's is."""

    def function(x: Any, weight: Any, gate: Any, up: Any, down: Any, *, eps: Any, norm: str, act: str) -> Any:
        none = (None, None, None)
        return scale(plain(x, weight, gate, up, None, down, *none, None, eps=eps, norm=norm, proj="separate", act=act))

    kernels_for(PATTERN)
    fxfuse.kernel(PATTERN, name="composed")(function)
    yield "composed"
    registry._REGISTRY[PATTERN] = [k for k in registry._REGISTRY[PATTERN] if k.name != "composed"]


@torch.no_grad()
def test_max_autotune_runs(call_node: str) -> None:
    model, x = Tiny(layers=1), batch()
    backend = fxfuse.Backend(mode="max-autotune", kernels={PATTERN: call_node}, on_error="raise")
    with recorded() as reports:
        close(torch.compile(model, backend=backend)(x), model(x))
    assert [s.kernel for s in reports[0].sites] == [call_node]


@pytest.mark.gpu
@torch.no_grad()
def test_cuda_graphs_replay_with_live_weights(call_node: str) -> None:
    model, x = Tiny(layers=2).cuda(), batch().cuda()
    for weights, kernel in (("separate", call_node), ("share", "stacked")):
        torch._dynamo.reset()
        options = {"weights": weights, "kernels": {PATTERN: kernel}, "on_error": "raise"}
        fast = torch.compile(model, backend=fxfuse.Backend(mode="reduce-overhead", **options))
        for _ in range(4):
            close(fast(x).clone(), model(x), atol=1e-4)
        model.layers[0].mlp.up.weight.mul_(1.5)
        close(fast(x).clone(), model(x), atol=1e-4)


@torch.no_grad()
def test_an_exported_program_keeps_the_call_node(call_node: str) -> None:
    model, x = Tiny(layers=2).requires_grad_(False), batch()
    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({1: rows},))
    report = fxfuse.rewrite(program, options={"kernels": {PATTERN: call_node}})
    assert report.rewritten[PATTERN] == 2
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    loaded = torch.export.load(stored)
    calls = [n for n in loaded.graph.nodes if n.target is torch.ops.fxfuse_tests.composed_scale.default]
    assert len(calls) == 2
    for count in (5, 17):
        close(loaded.module()(batch(count)), model(batch(count)))
