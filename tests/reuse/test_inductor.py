"""With Inductor: equal results, one compile for all copies, and a second process that starts from torch's caches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from reuse.stacks import Stack, compiled, copies, last, rows

MAIN = """
import json, sys, torch, fxfuse
from torch._dynamo.utils import counters
from reuse.stacks import Stack, compiled, copies, rows

torch.manual_seed(0)
model = Stack(int(sys.argv[1])).requires_grad_(False)
fast = compiled(model, "inductor", **json.loads(sys.argv[2]))
error = float((fast(rows()) - model(rows())).abs().max())
caches = counters["inductor"]
print(json.dumps({
    "error": error,
    "copies": copies(),
    "hits": caches["fxgraph_cache_hit"],
    "misses": caches["fxgraph_cache_miss"],
}))
"""


def run(folder: Path, layers: int, **options: Any) -> dict[str, Any]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", MAIN, str(layers), json.dumps(options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_second_process_compiles_nothing_however_deep_its_model_is(tmp_path: Path) -> None:
    cold, warm, other = run(tmp_path, 6), run(tmp_path, 8), run(tmp_path, 6, patterns=[])
    for row, count in ((cold, 6), (warm, 8), (other, 6)):
        assert row["error"] < 1e-5
        assert row["copies"] == [count]
    assert (cold["hits"], cold["misses"]) == (0, 1)  # a layer; what stands before the layers is not compiled
    assert (warm["hits"], warm["misses"]) == (1, 0)
    assert other["misses"] > 0  # another option


def test_gradients_of_regions() -> None:
    model = Stack(6)
    fast = compiled(model, "inductor")
    x, y = rows().requires_grad_(), rows().requires_grad_()
    found = torch.autograd.grad(fast(x).square().mean(), [x, *model.parameters()])
    assert sum(copies()) >= 5, last().reason
    expected = torch.autograd.grad(model(y).square().mean(), [y, *model.parameters()])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
