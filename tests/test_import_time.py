"""What `import fxfuse` costs on top of `import torch`, measured in fresh processes."""

import json
import statistics
import subprocess
import sys

import pytest

LIMIT_SECONDS = 0.050
RUNS = 5

MEASURE = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.perf_counter()
import {module}
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted(set(sys.modules) - before)]))
"""


def measure(module):
    """Seconds and newly imported modules of one import, after torch, in a process of its own."""
    out = subprocess.run([sys.executable, "-c", MEASURE.format(module=module)], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def test_import_is_cheap():
    measure("fxfuse")  # writes the bytecode, as an installer would
    seconds = [measure("fxfuse")[0] for _ in range(RUNS)]
    assert statistics.median(seconds) < LIMIT_SECONDS, [f"{1000 * s:.1f} ms" for s in seconds]


def test_the_measurement_can_fail():
    assert measure("torch._inductor.compile_fx")[0] > LIMIT_SECONDS


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("fxfuse", {"transformers", "triton", "networkx", "rich", "fxfuse_patterns"}),
        ("fxfuse.cli", {"transformers", "triton", "networkx", "rich", "fxfuse_patterns"}),
        ("fxfuse.backend", {"transformers", "fxfuse_patterns"}),
    ],
)
def test_nothing_heavy_is_imported(module, unwanted):
    _, modules = measure(module)
    assert module in modules
    assert not unwanted & {name.partition(".")[0] for name in modules}
