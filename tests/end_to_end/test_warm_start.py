"""A warm start: torch's caches on disk serve a second process, and never the body that a kernel had before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PAGE = '''
"""A pack as a third party would write it."""
import torch.nn.functional as F
from fxfuse import Dim, Input, Param, kernel, pattern
from their_pack.bodies import opaque, plainly

D = Dim("hidden")

@pattern("their_pair")
def their_pair(x=Input(..., D), first=Param(D, D), second=Param(D, D)):
    return F.linear(F.linear(x, first), second)

@kernel(their_pair, name="function", backward="autograd")
def function(x, first, second):
    return plainly(x, first, second)

@kernel(their_pair, name="op", backward="autograd")
def op(x, first, second):
    return opaque(x, first, second)
'''

# `{a}` and `{b}` are the two weights, in one order or the other: nothing here needs a C++ compiler.
BODIES = """
import torch
import torch.nn.functional as F
from torch import Tensor

def plainly(x, first, second):
    return F.linear(F.linear(x, {a}), {b})

@torch.library.custom_op("their_pack::opaque", mutates_args=())
def opaque(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return F.linear(F.linear(x, {a}), {b})

@opaque.register_fake
def _(x, first, second):
    return torch.empty_like(x)

def setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:])

def backward(ctx, grad):
    first, second = ctx.saved_tensors
    return grad @ {b} @ {a}, None, None

opaque.register_autograd(backward, setup_context=setup)
"""

MAIN = """
import json, torch, fxfuse
from torch._dynamo.utils import counters

torch.manual_seed(0)
model = torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=False) for _ in range(2))).requires_grad_(False)
exchanged = model[::-1]

def which(found, of):
    return [name for name, m in (("as written", model), ("exchanged", exchanged)) if torch.allclose(found, of(m))]

def gradient(m):
    leaf = torch.ones(4, 8).requires_grad_()
    (m(leaf) * torch.arange(8.0)).sum().backward()
    return leaf.grad

def call(x):
    return model[1](model[0](x))

out = {}
for name in ("function", "op"):
    torch._dynamo.reset()
    counters.clear()
    fast = torch.compile(call, backend="fxfuse", options={
        "patterns": ["their_pack::their_pair"], "kernels": {"their_pair": name}, "on_error": "raise"})
    found = gradient(fast)
    out[name] = {
        "output": which(fast(torch.ones(4, 8).requires_grad_()), lambda m: m(torch.ones(4, 8))),
        "gradient": which(found, gradient),
        "hits": counters["aot_autograd"]["autograd_cache_hit"] + counters["inductor"]["fxgraph_cache_hit"],
        "misses": counters["aot_autograd"]["autograd_cache_miss"] + counters["inductor"]["fxgraph_cache_miss"],
        "rewritten": fxfuse.reports()[-1].rewritten["their_pair"],
    }
print(json.dumps(out))
"""


def write_pack(folder: Path, a: str, b: str) -> None:
    pack = folder / "their_pack"
    pack.mkdir(parents=True, exist_ok=True)
    (pack / "__init__.py").write_text(PAGE)
    (pack / "bodies.py").write_text(BODIES.format(a=a, b=b))
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
    write_pack(tmp_path, "first", "second")
    cold, warm = run(tmp_path), run(tmp_path)
    write_pack(tmp_path, "second", "first")  # bodies.py only: neither the pattern's page nor a signature changed
    changed = run(tmp_path)
    for kernel in ("function", "op"):
        rows = [each[kernel] for each in (cold, warm, changed)]
        assert [row["rewritten"] for row in rows] == [1, 1, 1]
        assert [row["output"] for row in rows] == [["as written"], ["as written"], ["exchanged"]]
        assert [row["gradient"] for row in rows] == [["as written"], ["as written"], ["exchanged"]]
        assert [row["hits"] > 0 for row in rows] == [False, True, False], rows
        assert [row["misses"] > 0 for row in rows] == [True, False, True], rows
