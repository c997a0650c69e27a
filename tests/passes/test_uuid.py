"""The key of `InductorPass` in Inductor's caches: equal things have equal ones, and every change shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fxfuse.fingerprint import fingerprint

PAGE = """
import torch
import torch.nn.functional as F
from fxfuse import Dim, InductorPass, Input, Param, Scalar, cast, kernel, pattern, stack
import helpers

D, N = Dim("d"), Dim("n")
SCALE = 1.0

@pattern("their_gate", priority=0)
def their_gate(x=Input(..., D), a=Param(N, D), b=Param(N, D)):
    return F.silu(F.linear(x, a)) * F.linear(x, b)

@their_gate.constraint
def small_enough(m):
    m.require(m.a.shape[0] <= 64, "at most 64 rows", at=m.a)

def when(facts):
    return None if facts.needs_grad is False else "inference only"

def of(power):
    return lambda x: x * power

third = of(1.0)

@kernel(their_gate, name="merged", derive={"rows": stack("a", "b")}, rows=(1, 16), when=when)
def merged(x, rows):
    left, right = F.linear(x, rows).chunk(2, -1)
    return third(F.silu(left) * right * SCALE) + helpers.nothing(x)

print(InductorPass(patterns=[their_gate], kernels={"their_gate": "merged"}, paths=["blocks.*"]).uuid())
"""
HELPERS = "def nothing(x):\n    return 0 * x.sum()\n"


def uuid_of(folder: Path, page: str = PAGE, helpers: str = HELPERS, seed: int = 0) -> str:
    """The uuid that a new process computes. The page is run from memory: no file tells of a change."""
    folder.mkdir(exist_ok=True)
    (folder / "helpers.py").write_text(helpers)
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONHASHSEED": str(seed), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", page], env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    return uuid_of(tmp_path_factory.mktemp("as_written"))


def test_another_process_computes_the_same(written, tmp_path):
    assert uuid_of(tmp_path / "elsewhere", seed=7) == written


def test_blank_lines_and_comments_of_the_page_do_not_count(written, tmp_path):
    assert uuid_of(tmp_path / "spaced", "\n\n# why\n" + PAGE) == written


CHANGES = {
    "the constraint": ("<= 64", "<= 65"),
    "no constraint": ("@their_gate.constraint\n", ""),
    "the reference": ("F.silu(F.linear(x, a)) * F.linear(x, b)\n\n@their", "F.gelu(F.linear(x, a)) * F.linear(x, b)\n\n@their"),
    "a capture": ("x=Input(..., D), a", "x=Input(D), a"),
    "the priority": ("priority=0", "priority=1"),
    "the kernel's body": ("left) * right", "right) * left"),
    "a global of the kernel": ("SCALE = 1.0", "SCALE = 2.0"),
    "a closure of a function that it calls": ("of(1.0)", "of(3.0)"),
    "the transform": ('stack("a", "b")', 'stack("b", "a")'),
    "the rows": ("rows=(1, 16)", "rows=(1, 32)"),
    "the predicate": ("is False", "is None"),
    "the backward": ("rows=(1, 16), ", 'rows=(1, 16), backward="autograd", '),
    "a path": ('["blocks.*"]', '["blocks.**"]'),
    "another option": ("paths=", "weights='inline', paths="),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_every_change_shows(written, tmp_path, what):
    old, new = CHANGES[what]
    assert PAGE.count(old) == 1, what
    assert uuid_of(tmp_path / "changed", PAGE.replace(old, new)) != written


# --- the fingerprint of one function, without a process of its own ----------------------------------------------------


def made(source: str, name: str = "f", **scope: Any) -> Any:
    exec(source, scope)
    return scope[name]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(x): return x + 1", "def f(x): return x + 2"),
        ("def f(x): return x + 1", "def f(x): return x + 1.0"),
        ("def f(x): return x + 0.0", "def f(x): return x + -0.0"),
        ("def f(x, y=1): return x", "def f(x, y=2): return x"),
        ("def f(x, *, y=1): return x", "def f(x, *, y=2): return x"),
        ("def f(x): return x in {'a', 'b'}", "def f(x): return x in {'a', 'c'}"),
        ("def f(x): return [y for y in x if y > 1]", "def f(x): return [y for y in x if y > 2]"),
        ("def f(x): return (lambda: x + 1)()", "def f(x): return (lambda: x + 2)()"),
        ("def g(x): return x\ndef f(x): return g(x)", "def g(x): return -x\ndef f(x): return g(x)"),
        ("class C:\n  def m(self): return 1\ndef f(x): return C().m()",
         "class C:\n  def m(self): return 2\ndef f(x): return C().m()"),
        ("import functools\nf = functools.partial(max, 1)", "import functools\nf = functools.partial(max, 2)"),
        ("import torch\nf = torch.ones(3)", "import torch\nf = torch.zeros(3)"),
        ("import torch\nf = torch.float32", "import torch\nf = torch.float16"),
    ],
)  # fmt: skip
def test_functions_that_differ(one, other):
    assert fingerprint(made(one)) != fingerprint(made(other))
    assert fingerprint(made(one)) == fingerprint(made(one))


def test_recursion_ends():
    assert fingerprint(made("def f(x): return f(x - 1) if x else 0"))


def test_the_bodies_of_a_custom_op_count():
    def op(scale: float) -> Any:
        @torch.library.custom_op("fxfuse_tests::fingerprinted", mutates_args=())
        def fingerprinted(x: torch.Tensor) -> torch.Tensor:
            return x * scale

        return fingerprinted

    assert fingerprint(op(1.0)) != fingerprint(op(2.0))
