"""What gets installed: wheel and editable both carry the patterns and are found by torch without an import."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OFFLINE = ["--no-index", "--no-deps", "--disable-pip-version-check"]

# Runs in the new environment. Torch finds the backend by its entry point alone.
USE = """
import json, sys
import torch

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.Parameter(torch.rand(16))
        self.gate, self.up = (torch.nn.Linear(16, 32, bias=False) for _ in range(2))
        self.down = torch.nn.Linear(32, 16, bias=False)

    def forward(self, x):
        h = x.float()
        h = self.norm * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
        return self.down(torch.nn.functional.silu(self.gate(h)) * self.up(h))

assert not any(name.partition(".")[0] == "fxfuse" for name in sys.modules)
model, x = Block(), torch.rand(2, 16)
with torch.no_grad():
    compiled = torch.compile(model, backend="fxfuse", options={"inner": "aot_eager"})
    torch.testing.assert_close(compiled(x), model(x))

import fxfuse, fxfuse_patterns
print(json.dumps({
    "fxfuse": fxfuse.__file__,
    "patterns": fxfuse_patterns.__file__ or list(fxfuse_patterns.__path__)[0],
    "matched": dict(fxfuse.reports()[-1].matched),
}))
"""


def run(*command, **keywords):
    out = subprocess.run([str(part) for part in command], capture_output=True, text=True, **keywords)
    assert out.returncode == 0, f"{command}\n{out.stdout}\n{out.stderr}"
    return out.stdout


def sources(package):
    return {path.relative_to(package).as_posix() for path in package.rglob("*.py")}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what a build reads, so that building leaves nothing behind here."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("fxfuse", "patterns"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, checkout)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture
def empty_environment(tmp_path):
    """A new environment without fxfuse, that reads torch and the rest from where the tests run."""
    home = tmp_path / "env"
    venv.create(home, with_pip=False)
    (site_packages,) = home.glob("lib/python*/site-packages")
    # Only a path: the .pth files over there, the editable fxfuse among them, are not read.
    shared = [entry for entry in sys.path if Path(entry).name in {"site-packages", "dist-packages"}]
    (site_packages / "shared.pth").write_text("\n".join(shared) + "\n")
    return home


def isolated():
    """The environment variables, less those through which another fxfuse could be found."""
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}


def test_the_wheel_carries_every_source_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {f"fxfuse/{name}" for name in sources(ROOT / "fxfuse")} | {"fxfuse/py.typed"}
    wanted |= {f"fxfuse_patterns/{name}" for name in sources(ROOT / "patterns")}
    wanted |= {f"fxfuse/results/{path.name}" for path in (ROOT / "fxfuse" / "results").glob("*.json")}
    wanted |= {"fxfuse/kernels/cpp/panels.cpp", "fxfuse/report/schema.json"}
    wanted |= {f"fxfuse/report/html/page.{suffix}" for suffix in ("css", "html", "js")}
    assert "fxfuse_patterns/rms_norm_gated_mlp.py" in wanted
    assert names - {name for name in names if ".dist-info/" in name} == wanted


def test_the_wheel_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {Path(name).parts[0] for name in archive.namelist() if ".dist-info/" in name}
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    about = PathDistribution(zipfile.Path(wheel, f"{info}/"))
    assert about.metadata["License-Expression"] == "Apache-2.0"
    assert about.metadata["Requires-Python"] == ">=3.10"
    assert {(entry.group, entry.name, entry.value) for entry in about.entry_points} == {
        ("torch_dynamo_backends", "fxfuse", "fxfuse.backend:fxfuse"),
        ("fxfuse.patterns", "fxfuse", "fxfuse_patterns"),
        ("console_scripts", "fxfuse", "fxfuse.cli:main"),
    }
    core = [line for line in about.requires or [] if "extra ==" not in line]
    assert not any(line.startswith("triton") for line in core), "torch's accelerator builds bring their own"
    assert {"triton", "demo", "test", "bench", "docs"} <= set(about.metadata.get_all("Provides-Extra"))


def test_a_wheel_works_in_an_empty_environment(wheel, empty_environment, tmp_path):
    python = empty_environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", *OFFLINE, wheel, env=isolated())
    found = json.loads(run(python, "-c", USE, cwd=tmp_path, env=isolated()).splitlines()[-1])
    assert Path(found["fxfuse"]).is_relative_to(empty_environment)
    assert Path(found["patterns"]).is_relative_to(empty_environment)
    assert found["matched"] == {"rms_norm_gated_mlp": 1}
    assert run(empty_environment / "bin" / "fxfuse", "--version", env=isolated()).startswith("fxfuse ")


def test_an_editable_install_works_in_an_empty_environment(checkout, empty_environment, tmp_path):
    python = empty_environment / "bin" / "python"
    install = ["install", *OFFLINE, "--no-build-isolation", "--editable", checkout]
    run(sys.executable, "-m", "pip", "--python", python, *install, env=isolated())
    found = json.loads(run(python, "-c", USE, cwd=tmp_path, env=isolated()).splitlines()[-1])
    assert Path(found["fxfuse"]).is_relative_to(checkout)
    assert Path(found["patterns"]).is_relative_to(checkout / "patterns")
    assert found["matched"] == {"rms_norm_gated_mlp": 1}
