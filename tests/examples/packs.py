"""Packs as a user installs them: in a folder of their own, found by entry point in another process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FORECASTING = ROOT / "examples" / "forecasting"


def install(source: Path, site: Path, build: Path) -> None:
    """Install a pack's folder into ``site`` with pip, without a network and without a trace in the source."""
    shutil.copytree(source, build, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    offline = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    run([sys.executable, "-m", "pip", "install", *offline, "--target", str(site), str(build)])


def write_pack(site: Path, name: str, module: str, code: str) -> None:
    """A one-file pack as an installer would leave it: the module, and metadata with the entry point."""
    site.mkdir(parents=True, exist_ok=True)
    (site / f"{module}.py").write_text(code)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fxfuse.patterns]\n{name} = {module}\n")


def environment(*sites: Path, **more: str) -> dict[str, str]:
    """Variables under which packs in these folders are installed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, sites)), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}


def run(command: Sequence[str], code: int = 0, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """Run a command that must end with this exit code."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **keywords)
    assert done.returncode == code, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done


def answer(script: str, *sites: Path, **more: str) -> Any:
    """What a script prints as JSON in its last line, with these packs installed."""
    done = run([sys.executable, "-c", script], env=environment(*sites, **more), cwd=sites[0])
    return json.loads(done.stdout.splitlines()[-1])
