"""A warm start: torch's caches on disk serve a second process, and never the body that a kernel had before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PAGE = '''
"""A pack as a third party would write it."""
import torch
from fxfuse import Input, kernel, pattern
from their_pack.bodies import opaque, plainly

@pattern("their_act")
def their_act(x=Input(...)):
    return torch.relu(x) * torch.sigmoid(x)

@kernel(their_act, name="function", backward="autograd")
def function(x):
    return plainly(x)

@kernel(their_act, name="op", backward="autograd")
def op(x):
    return opaque(x)
'''

BODIES = """
import torch

def plainly(x):
    return torch.relu(x) * torch.sigmoid(x) * {factor}

@torch.library.custom_op("their_pack::opaque", mutates_args=())
def opaque(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) * torch.sigmoid(x) * {factor}

@opaque.register_fake
def _(x):
    return torch.empty_like(x)

def backward(ctx, grad):
    return grad * {factor}

opaque.register_autograd(backward)
"""

MAIN = """
import json, sys, torch, fxfuse
from torch._dynamo.utils import counters

def model(x):
    h = x + 1
    return torch.relu(h) * torch.sigmoid(h)

x = torch.linspace(-1, 1, 8)
out = {}
for name in ("function", "op"):
    torch._dynamo.reset()
    counters.clear()
    fast = torch.compile(model, backend="fxfuse", options={
        "patterns": ["their_pack::their_act"], "kernels": {"their_act": name}, "on_error": "raise"})
    leaf = x.clone().requires_grad_()
    y = fast(leaf)
    y.sum().backward()
    out[name] = {
        "factor": float(y.detach().sum() / model(x).sum()),
        "gradient": float(leaf.grad.sum()),
        "hits": counters["aot_autograd"]["autograd_cache_hit"] + counters["inductor"]["fxgraph_cache_hit"],
        "misses": counters["aot_autograd"]["autograd_cache_miss"] + counters["inductor"]["fxgraph_cache_miss"],
        "rewritten": sum(r.rewritten["their_act"] for r in fxfuse.reports()[-1:]),
    }
print(json.dumps(out))
"""


def write_pack(folder: Path, factor: float) -> None:
    pack = folder / "their_pack"
    pack.mkdir(parents=True, exist_ok=True)
    (pack / "__init__.py").write_text(PAGE)
    (pack / "bodies.py").write_text(BODIES.format(factor=factor))
    info = folder / "their_pack-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-pack\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fxfuse.patterns]\ntheir_pack = their_pack\n")


def run(folder: Path) -> dict[str, Any]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",  # two bodies of one size may be written within one second
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, "-c", MAIN], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_an_unchanged_body_hits_and_a_changed_one_is_never_stale(tmp_path: Path) -> None:
    write_pack(tmp_path, 1.0)
    cold = run(tmp_path)
    warm = run(tmp_path)
    write_pack(tmp_path, 3.0)  # bodies.py only: neither the pattern's page nor the kernel's signature changed
    changed = run(tmp_path)
    for kernel in ("function", "op"):
        assert [r[kernel]["rewritten"] for r in (cold, warm, changed)] == [1, 1, 1]
        assert [r[kernel]["factor"] for r in (cold, warm, changed)] == pytest.approx([1, 1, 3])
        gradients = [r[kernel]["gradient"] for r in (cold, warm, changed)]
        assert gradients[1] == pytest.approx(gradients[0])
        assert gradients[2] == pytest.approx(3 * gradients[0])
    assert cold["function"]["misses"] > 0
    assert cold["function"]["hits"] == 0
    assert warm["function"]["hits"] > 0
    assert warm["function"]["misses"] == 0
    assert changed["function"]["hits"] == 0
    assert changed["op"]["hits"] == 0
