"""The key of `InductorPass` in Inductor's caches: equal things have equal ones, and every change shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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

uuid = InductorPass(patterns=[their_gate], kernels={"their_gate": "merged"}, paths=["blocks.*"]).uuid()
"""
HELPERS = "def nothing(x):\n    return {}\n"

MAIN = """
import json, sys, types
pages, helpers = json.load(sys.stdin)
uuids = {}
for what, page in pages.items():
    sys.modules["helpers"] = made = types.ModuleType("helpers")
    exec(helpers[what == "a module that it calls"], vars(made))
    scope = {"__name__": "their_page"}
    exec(page, scope)  # from memory: no file tells of a change
    uuids[what] = scope["uuid"]
print(json.dumps(uuids))
"""

CHANGES = {
    "the constraint": ("<= 64", "<= 65"),
    "no constraint": ("@their_gate.constraint\n", ""),
    "the reference": ("F.silu(F.linear(x, a)) * F.linear(x, b)", "F.gelu(F.linear(x, a)) * F.linear(x, b)"),
    "a capture": ("x=Input(..., D), a", "x=Input(D), a"),
    "the priority": ("priority=0", "priority=1"),
    "the kernel's body": ("left) * right", "right) * left"),
    "a global of the kernel": ("SCALE = 1.0", "SCALE = 2.0"),
    "a closure of a function that it calls": ("of(1.0)", "of(3.0)"),
    "a module that it calls": ("", ""),
    "the transform": ('stack("a", "b")', 'stack("b", "a")'),
    "the rows": ("rows=(1, 16)", "rows=(1, 32)"),
    "the predicate": ("is False", "is None"),
    "the backward": ("rows=(1, 16), ", 'rows=(1, 16), backward="autograd", '),
    "a path": ('["blocks.*"]', '["blocks.**"]'),
    "another option": ("paths=", "weights='inline', paths="),
}  # fmt: skip
SAME = {"as written": PAGE, "the same again": PAGE, "with blank lines and a comment": "\n\n# why\n" + PAGE}


def uuids(seed: str) -> dict[str, str]:
    """What a new process computes for each page, by what is changed in it."""
    pages = {**SAME, **{what: PAGE.replace(old, new) if old else PAGE for what, (old, new) in CHANGES.items()}}
    helpers = HELPERS.format("0 * x.sum()"), HELPERS.format("1 * x.sum()")
    done = subprocess.run(
        [sys.executable, "-c", MAIN], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True,
        input=json.dumps([pages, helpers]), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def computed() -> dict[str, str]:
    return uuids("1")


def test_another_process_computes_the_same(computed):
    assert uuids("2") == computed


def test_what_does_not_count(computed):
    assert len({computed[what] for what in SAME}) == 1


@pytest.mark.parametrize("what", CHANGES)
def test_every_change_shows(computed, what):
    old, _ = CHANGES[what]
    assert not old or PAGE.count(old) == 1
    assert computed[what] != computed["as written"]


# --- the fingerprint of one function, without a process of its own ----------------------------------------------------


def made(source: str) -> Any:
    scope: dict[str, Any] = {"__name__": "their_page"}
    exec(source, scope)
    return scope["f"]


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
