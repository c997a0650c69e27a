"""A page of documentation does what it says: every block runs, and prints what the page shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "page", ["authoring.md", "from_kernelconfig.md", "from_liger.md", "from_veomni.md", "patterns.md", "tuning.md"]
)
def test_every_block_runs_and_prints_what_is_shown(page: str) -> None:
    """In a process of its own: patterns, kernels and ops of a page are registered for good, and Triton interprets."""
    pytest.importorskip("triton", reason="Triton is an extra, and brought by some builds of torch only")
    if page == "from_kernelconfig.md":
        pytest.importorskip("transformers")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    command = [sys.executable, "-W", "ignore", "tests/docs/pages.py", f"docs/{page}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (
        f"\n{done.stdout}\n{done.stderr[-2000:]}\n"
        f"Where the new output is right: TRITON_INTERPRET=1 PYTHONPATH=. python tests/docs/pages.py docs/{page} --write"
    )
