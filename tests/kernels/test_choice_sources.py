"""Which code a kernel runs, as a hash: equal in another process, and another one where anything that counts changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = """
import functools
import torch
from fxfuse import Dim, Input, Param, cast, kernel, pattern
from of_sources.helpers import double

D = Dim("d")
FACTOR = 2.0

@pattern("of_sources")
def of_sources(x=Input(..., D), w=Param(D)):
    return torch.tanh(x) * w * 2

def helper(x):
    return double(x) * FACTOR / 2

@kernel(of_sources, name="direct")
def direct(x, w):
    return helper(torch.tanh(x) * w)

@kernel(of_sources, name="inside")
def inside(x, w):
    from of_sources.triton.fast import launch

    return launch(x, w)

kernel(of_sources, name="lazy", implementation="of_sources.triton.fast:launch")

@kernel(of_sources, name="derived", derive={"wide": cast("w", torch.float32)})
def derived(x, wide):
    return torch.tanh(x) * wide * 2
"""
FILES = {
    "__init__.py": PAGE,
    "helpers.py": "def double(x):\n    return x * 2\n\ndef unused(x):\n    return x\n",
    "triton/__init__.py": "",
    "triton/fast.py": "from of_sources.triton import tiles\n\ndef launch(x, w):\n    return x * w * tiles.SIZE\n",
    "triton/tiles.py": "SIZE = 2\n",
}
MAIN = """
import json, sys
import of_sources
from fxfuse.kernels import kernels_for
from fxfuse.kernels.sources import source_of
print(json.dumps([{n: source_of(k) for n, k in kernels_for(of_sources.of_sources).items()},
                  "of_sources.triton.fast" in sys.modules]))
"""


def sources(folder: Path, file: str = "", old: str = "", new: str = "") -> dict[str, str]:
    """What a new process computes, with one change in one file."""
    for name, text in FILES.items():
        path = folder / "of_sources" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace(old, new) if name == file else text)
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); sys.dont_write_bytecode = True\n{MAIN}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found, loaded = json.loads(done.stdout.splitlines()[-1])
    assert not loaded, "to ask is not to import"
    return found


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return sources(tmp_path_factory.mktemp("before"))


CHANGES: dict[str, tuple[str, str, str, set[str]]] = {
    "nothing": ("", "", "", set()),
    "the function": ("__init__.py", "helper(torch.tanh(x) * w)", "helper(w * torch.tanh(x))", {"direct"}),
    "a function of the same module": ("__init__.py", "double(x) * FACTOR", "FACTOR * double(x)", {"direct"}),
    "a global": ("__init__.py", "FACTOR = 2.0", "FACTOR = 4.0 / 2.0 + 1e-9", {"direct"}),
    "a function of another module": ("helpers.py", "x * 2", "x + x", {"direct"}),
    "one that nobody names": ("helpers.py", "def unused(x):\n    return x", "def unused(x):\n    return -x", set()),
    "a module imported while it runs": ("triton/fast.py", "x * w", "w * x", {"inside", "lazy"}),
    "what that imports": ("triton/tiles.py", "2", "3 - 1", {"inside", "lazy"}),
    "the transform": ("__init__.py", "torch.float32", "torch.float64", {"derived"}),
    "the pattern": ("__init__.py", "torch.tanh(x) * w * 2\n\ndef helper", "w * torch.tanh(x) * 2\n\ndef helper", set()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_which(before: dict[str, str], what: str, tmp_path: Path) -> None:
    file, old, new, changed = CHANGES[what]
    assert not old or FILES[file].count(old) == 1
    after = sources(tmp_path, file, old, new)
    assert {name for name in before if before[name] != after[name]} == changed
    assert len(set(after.values())) == len(after)
