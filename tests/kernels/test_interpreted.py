"""The Triton kernels' numbers: the files of `interpreted/`, in a process in which Triton interprets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(path for path in FOLDER.glob("*.py") if path.name != "contract.py")


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_in_the_interpreter(file):
    """``triton.jit`` decides between compiler and interpreter when it decorates, also inside triton.language itself.

    So a process is one or the other. The tests around this one compile; the interpreted ones get a process of their
    own. Their files have no ``test_`` in their names, which keeps them out of this process's collection.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
