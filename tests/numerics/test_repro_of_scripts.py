"""A repro of what a script itself defines holds its definitions, and does not run the script."""

from __future__ import annotations

import runpy
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import fxfuse
from fxfuse.numerics.written import definitions

SCRIPT = """\
from __future__ import annotations
import torch, fxfuse
import torch.nn.functional as F
from fxfuse import Dim, Input, Param, pattern
ran.append(1)
D, N = Dim("d"), Dim("n")
SCALE = 1.0

def product(g, u):
    return F.silu(g) * u

@pattern("{name}")
def own(x=Input(..., D), gate=Param(N, D), up=Param(N, D)):
    return product(F.linear(x, gate), F.linear(x, up))

@own.constraint
def wide(m):
    m.require(True, "never")

def mine(x, gate, up):
    return product(F.linear(x, gate), F.linear(x, up)) * SCALE

fxfuse.kernel(own, name="mine", device="cpu")(mine)

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(8, 16, bias=False), torch.nn.Linear(8, 16, bias=False)

    def forward(self, x):
        return F.silu(self.a(x)) * self.b(x)

options = {{"patterns": [own], "kernels": {{"{name}": "mine"}}}}
with torch.no_grad():
    made = fxfuse.repro(Model(), (torch.randn(3, 8),), options=options)
"""


def test_a_repro_holds_what_the_script_defines(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.format(name="own_of_a_script"), encoding="utf-8")
    ran: list[int] = []
    made = runpy.run_path(str(path), {"ran": ran}, "__main__")["made"]
    compile(made, "repro.py", "exec")
    for kept in (
        "SCALE = 1.0",
        "def product(",
        "@own.constraint",
        "def mine(",
        'fxfuse.kernel(own, name="mine"',
        "pattern = own",
    ):
        assert kept in made
    for left in ("ran.append", "class Model", "options = {", "import train"):
        assert left not in made.replace('options = {"patterns": [pattern]', "")
    # It runs where the script is not known. The names are other ones here, since this process has those already.
    again = made.replace("own_of_a_script", "own_of_a_repro")
    (tmp_path / "repro.py").write_text(again, encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(tmp_path / "repro.py"), run_name="__main__")
    assert end.value.code == 0
    assert ran == [1]


@pytest.mark.parametrize(
    ("text", "names", "kept", "left"),
    [
        ("import os\nimport re\ndef f(): return os.sep\n", ["f"], ["import os", "def f"], ["import re"]),
        ("A = B = 1\nC = A\ndef f(): return C\nD = 2\n", ["f"], ["A = B = 1", "C = A"], ["D = 2"]),
        ("try:\n    import x\nexcept ImportError:\n    x = None\ndef f(): return x\n", ["f"], ["try:", "x = None"], []),
        ("from math import *\ndef f(): return pi\n", ["f"], ["from math import *"], []),
        ("@deco\n@o(1)\ndef f(): ...\ndef deco(g): ...\ndef h(): ...\n", ["f"], ["@deco\n@o", "def deco"], ["def h"]),
        ("def f():\n    é = 'ü'\n    return é\nprint(f())\n", ["f"], ["é = 'ü'"], ["print"]),
        ("class K:\n    def f(self): ...\nf = K().f\n", ["f"], ["class K", "f = K().f"], []),
    ],
)  # fmt: skip
def test_what_a_name_is_made_of(text: str, names: list[str], kept: list[str], left: list[str], tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(text, encoding="utf-8")
    found = "\n".join(definitions(str(tmp_path / "s.py"), names))
    assert all(one in found for one in kept)
    assert not any(one in found for one in left)


@pytest.mark.parametrize(
    "text", ["if __name__ == '__main__':\n    def f(): ...\n", "def outer():\n    def f(): ...\n", "g = 1\n"]
)
def test_what_no_other_script_can_have_is_said(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(text, encoding="utf-8")
    with pytest.raises(fxfuse.OptionError, match=r"f is not defined at the top level of .*s\.py.*Move it there"):
        definitions(str(tmp_path / "s.py"), ["f"])


def test_a_pattern_from_a_prompt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt: Any = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", prompt)
    code = SCRIPT.format(name="own_of_a_prompt").partition("options =")[0]
    prompt.ran = []
    exec(compile(code, "<stdin>", "exec"), vars(prompt))  # what an interpreter does with what is typed
    options = {"patterns": [prompt.own], "kernels": {"own_of_a_prompt": "mine"}}
    with pytest.raises(fxfuse.OptionError, match=r"was defined at a prompt.*Put it into a file"), torch.no_grad():
        fxfuse.repro(prompt.Model(), (torch.randn(3, 8),), options=options)
