"""Inductor's cache on disk with an `InductorPass`: never bypassed, hit by an equal pass, missed by any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Each body is two GEMMs in one order or the other: nothing here needs a C++ compiler.
PACK = """
import torch.nn.functional as F
from fxfuse import Dim, Input, Param, kernel, pattern

D = Dim("hidden")

@pattern("their_pair")
def their_pair(x=Input(..., D), first=Param(D, D), second=Param(D, D)):
    return F.linear(F.linear(x, first), second)

@kernel(their_pair, name="function", backward="autograd")
def function(x, first, second):
    return F.linear(F.linear(x, {a}), {b})
"""
MAIN = """
import json, sys, torch
from torch._dynamo.utils import counters
from fxfuse import InductorPass
from pack import their_pair

torch.manual_seed(0)
model = torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=False) for _ in range(2))).requires_grad_(False)
exchanged = model[::-1]
hook, paths = sys.argv[1:3]
run = InductorPass(patterns=[their_pair], kernels={"their_pair": "function"}, on_error="raise", paths=[paths])
x = torch.ones(4, 8)
with torch.no_grad():
    got = torch.compile(model, options={hook: run})(x)
    which = [n for n, m in (("as written", model), ("exchanged", exchanged)) if torch.allclose(got, m(x))]
inductor, aot = counters["inductor"], counters["aot_autograd"]
print(json.dumps({
    "output": which,
    "ran": len(run.reports),
    "hit": inductor["fxgraph_cache_hit"] + aot["autograd_cache_hit"] > 0,
    "miss": inductor["fxgraph_cache_miss"] > 0,
    "bypass": inductor["fxgraph_cache_bypass"] + aot["autograd_cache_bypass"] > 0,
}))
"""


def run(folder: Path, hook: str, paths: str = "**", body: tuple[str, str] = ("first", "second")) -> dict[str, Any]:
    (folder / "pack.py").write_text(PACK.format(a=body[0], b=body[1]))
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", MAIN, hook, paths], env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


COLD = {"ran": 1, "hit": False, "miss": True, "bypass": False}


@pytest.mark.parametrize("hook", ["pre_grad_custom_pass", "post_grad_custom_post_pass"])
def test_hit_by_an_equal_pass_and_by_no_other(hook, tmp_path):
    assert run(tmp_path, hook) == {"output": ["as written"], **COLD}
    warm = run(tmp_path, hook)
    assert warm["output"] == ["as written"]
    assert (warm["hit"], warm["miss"], warm["bypass"]) == (True, False, False)
    assert run(tmp_path, hook, body=("second", "first")) == {"output": ["exchanged"], **COLD}
    assert run(tmp_path, hook, paths="*") == {"output": ["as written"], **COLD}
