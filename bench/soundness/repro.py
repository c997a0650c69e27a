"""A failing program as a script that stands alone: it runs, and shows the fault."""

from __future__ import annotations

import inspect
import pprint
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.soundness.execute import SEED, Verdict, check
from bench.soundness.program import Program
from bench.soundness.setting import DYNAMO, Setting
from fxfuse import library, safeguards
from fxfuse.authoring import Pattern

_SCRIPT = '''"""{title}

Found by `python -m bench.soundness` ({where}), and shrunk. Exit code 1: the fault is there.
"""

import sys

import torch
import torch.nn.functional as F
from torch import enable_grad, nn, no_grad
from torch.amp import autocast
from torch.utils.checkpoint import checkpoint

import fxfuse
from fxfuse.safeguards import lifted
{patterns}

{source}

def operands():
    torch.manual_seed({seed})
{operands}
    return dict({names})


class Module(nn.Module):
    """The program on its own parameters and buffers."""

    def __init__(self, tensors):
        super().__init__()
        for name, tensor in tensors.items():
            if name[0] == "p":
                self.register_parameter(name, tensor)
            elif name[0] == "b":
                self.register_buffer(name, tensor)

    def forward(self, **inputs):
        return program(*(inputs[n] if n in inputs else getattr(self, n) for n in {order!r}))


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


def run(compiled):
    tensors = operands()
    module = Module(tensors)
    inputs = {{n: t for n, t in tensors.items() if n[0] == "x"}}
    for name, size in {dynamic!r}:
        torch._dynamo.mark_dynamic(inputs[name], size)
    options = {options}
    backend = fxfuse.Backend(inner="eager", **options)
    call = torch.compile(module, backend=backend, fullgraph=True) if compiled else module
    torch.manual_seed({seed} + 1)
    with torch.set_grad_enabled({grad}), lifted(*{lifted!r}):
        results = call(**inputs)
    facts = {{}}
    for i, result in enumerate(results):
        shared = [n for n, t in tensors.items() if storage(t) == storage(result)]
        facts[f"result {{i}}"] = result
        facts[f"result {{i}}, beside its values"] = (result.dtype, result.shape, result.requires_grad, shared)
    facts |= {{f"{{name}} after the call": tensor for name, tensor in tensors.items()}}
    leaves = {{n: t for n, t in tensors.items() if t.requires_grad and t.is_leaf}}
    sources = [r for r in results if r.requires_grad]
    if leaves and sources:
        loss = sum(r.double().sum() for r in sources)
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        facts |= {{f"gradient of {{name}}": gradient for name, gradient in zip(leaves, gradients)}}
    return facts


def main():
    want, got = run(False), run(True)
    print(fxfuse.reports()[-1])
    wrong = 0
    for name, a in want.items():
        b = got[name]
        tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape
        if not (tensors and torch.equal(a.nan_to_num(), b.nan_to_num())) and (tensors or a != b):
            wrong += 1
            print(f"{{name}} differs\\n  eager:  {{a}}\\n  fxfuse: {{b}}")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
'''

_AS_RECORDED = '''"""{title}

Found by `python -m bench.soundness` ({where}), and shrunk. Dynamo captures another graph of this program than the
fuzz's recorder, and on Dynamo's the fault is not seen; so this script needs the repository. Exit code 1: it is there.
"""

import sys

import torch

from bench.soundness.execute import check
from bench.soundness.patterns import everything
from bench.soundness.program import Operand, Program, Step
from bench.soundness.setting import Setting
from fxfuse.safeguards import lifted

PROGRAM = {program}
SETTING = {setting!r}

print(PROGRAM.source)
with lifted(*{lifted!r}):
    verdict = check(PROGRAM, SETTING, everything())
print(verdict.fused and verdict.fused.report)
print(verdict.wrong or verdict.crash or "no fault")
sys.exit(verdict.failed)
'''


def script(program: Program, setting: Setting, verdict: Verdict, patterns: Sequence[Pattern], where: str) -> str:
    """The text of a script that shows the failure: through torch.compile, or where Dynamo hides it, as recorded."""
    title = f"fxfuse is wrong: {verdict.wrong}" if verdict.wrong else f"fxfuse crashes: {verdict.crash}"
    lifted = tuple(name for name, one in safeguards.SAFEGUARDS.items() if one.lifted)
    seen = check(program, replace(setting, capture=DYNAMO), patterns)
    if seen.kind != verdict.kind:
        body = pprint.pformat(program, width=110)
        return _AS_RECORDED.format(title=title, where=where, program=body, setting=setting, lifted=lifted)
    used = {s.pattern for s in verdict.sites if s.outcome == "rewritten"} or {p.name for p in patterns}
    active = [p for p in patterns if p.name in used]
    options = setting.describe()
    options["kernels"] = {k: v for k, v in options["kernels"].items() if k in used}
    listed = ", ".join(map(_named, active))
    return _SCRIPT.format(
        title=title,
        where=where,
        patterns=_definitions(active),
        source=program.source,
        seed=SEED,
        operands="\n".join(f"    {o.name} = {o.text()}" for o in program.operands),
        names=", ".join(f"{n}={n}" for n in program.parameters),
        order=program.parameters,
        dynamic=tuple((o.name, i) for o in program.operands for i in o.dynamic),
        options="{" + f'"patterns": [{listed}], ' + repr(options)[1:],
        grad=program.grad,
        lifted=lifted,
    )


def _named(pattern: Pattern) -> str:
    """How the script names a pattern: of a pack by its name, of this repository by the variable that holds it."""
    if pattern in library.all_patterns().values():
        return repr(library.qualified(pattern))
    module = inspect.getmodule(pattern.function)
    return next(name for name, value in vars(module).items() if value is pattern)


def _definitions(patterns: Sequence[Pattern]) -> str:
    """The source of the patterns that no pack has."""
    own = [p for p in patterns if p not in library.all_patterns().values()]
    if not own:
        return ""
    module = inspect.getmodule(own[0].function)
    assert module is not None
    text = inspect.getsource(module)
    return text.replace("from __future__ import annotations\n", "")


def save(text: str, directory: Path, name: str) -> Path:
    """Write a script to the directory of repro scripts."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return path
