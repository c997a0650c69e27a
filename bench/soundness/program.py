"""`Program`: a random PyTorch function over named tensors, as text that a person can read and run."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

_NAME = re.compile(r"\b[xpbt]\d+\b")
_MADE = re.compile(r"^((?:[xpbt]\d+(?:, )?)+) = ")

INPUT, PARAMETER, BUFFER = "x", "p", "b"
"""What a tensor is, and how its name begins; values made on the way begin with ``t``."""

CHECKPOINT = "checkpoint"
REGIONS = {"no_grad": "no_grad()", "enable_grad": "enable_grad()", "autocast": 'autocast("cpu", torch.bfloat16)'}


@dataclass(frozen=True)
class Operand:
    """A tensor that the program is given.

    ``of``: an expression over operands before it, where this one shares storage with them. ``low`` is where an index
    tensor's values end. ``scale`` and ``shift`` move its normal values. ``dynamic`` sizes are symbols of the graph.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    grad: bool = False
    of: str = ""
    scale: float = 1.0
    shift: float = 0.0
    low: int = 0
    dynamic: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        return self.name[0]

    def text(self) -> str:
        """The expression that makes it."""
        if self.of:
            made = self.of
        elif self.dtype is torch.bool:
            made = f"torch.rand({self.shape}) > 0.3"
        elif self.dtype.is_complex:
            made = f"torch.randn({self.shape}, dtype={self.dtype})"
        elif not self.dtype.is_floating_point:
            made = f"torch.randint({self.low}, {self.shape}, dtype={self.dtype})"
        else:
            made = f"torch.randn({self.shape})"
            made += f" * {self.scale}" if self.scale != 1 else ""
            made += f" + {self.shift}" if self.shift else ""
            if self.dtype is not torch.float32:
                made = f"({made}).to({self.dtype})" if " " in made else f"{made}.to({self.dtype})"
        if self.kind == PARAMETER:
            return f"nn.Parameter({made}, requires_grad={self.grad})"
        return f"({made}).requires_grad_()" if self.grad else made


@dataclass(frozen=True)
class Step:
    """One statement, and the regions around it, outermost first: keys of ``REGIONS``, or a checkpoint's body."""

    text: str
    region: tuple[str, ...] = ()

    @functools.cached_property
    def made(self) -> tuple[str, ...]:
        found = _MADE.match(self.text)
        return tuple(found.group(1).split(", ")) if found else ()

    @functools.cached_property
    def read(self) -> tuple[str, ...]:
        found = _MADE.match(self.text)
        return tuple(dict.fromkeys(_NAME.findall(self.text[found.end() :] if found else self.text)))

    def renamed(self, names: Mapping[str, str]) -> Step:
        """The statement with what it reads renamed."""
        found = _MADE.match(self.text)
        end = found.end() if found else 0
        text = _NAME.sub(lambda m: names.get(m.group(), m.group()), self.text[end:])
        return replace(self, text=self.text[:end] + text)


@dataclass(frozen=True)
class Program:
    """Operands, statements and what is returned. ``focus`` tells which pieces it was built from."""

    operands: tuple[Operand, ...]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    focus: tuple[str, ...] = ()
    grad: bool = False  # whether grad mode is on around the call

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(o.name for o in self.operands)

    @functools.cached_property
    def source(self) -> str:
        """The function's text."""
        body = "\n".join(_lines(self.steps, self.outputs, "    "))
        returned = ", ".join(self.outputs) + ("," if len(self.outputs) == 1 else "")
        return f"def program({', '.join(self.parameters)}):\n{body}\n    return ({returned})\n"

    def function(self, scope: Mapping[str, Any]) -> Any:
        """The function itself, with the names of ``scope`` around it."""
        names = dict(scope)
        exec(_code(self.source), names)
        return names["program"]


@functools.lru_cache(maxsize=64)
def _code(source: str) -> Any:
    return compile(source, "<program>", "exec")


def _lines(steps: Iterable[Step], outputs: tuple[str, ...], indent: str) -> Iterator[str]:
    """The statements, each run of one region under its ``with`` or as the body of its checkpoint."""
    steps = list(steps)
    at = 0
    while at < len(steps):
        step = steps[at]
        if not step.region:
            yield indent + step.text
            at += 1
            continue
        outer, end = step.region[0], at
        while end < len(steps) and steps[end].region[:1] == (outer,):
            end += 1
        inner = [replace(s, region=s.region[1:]) for s in steps[at:end]]
        later = {name for s in steps[end:] for name in s.read} | set(outputs)
        if outer.startswith(CHECKPOINT):
            yield from _body(inner, later, f"{outer}_{end}", indent)
        else:
            yield f"{indent}with {REGIONS[outer]}:"
            yield from _lines(inner, tuple(later), indent + "    ")
        at = end


def _body(steps: list[Step], later: set[str], name: str, indent: str) -> Iterator[str]:
    made = list(dict.fromkeys(n for s in steps for n in s.made))
    given = list(dict.fromkeys(n for s in steps for n in s.read if n not in made))
    results = [n for n in made if n in later] or made[-1:]
    listed = ", ".join(results) + ("," if len(results) == 1 else "")
    yield f"{indent}def {name}({', '.join(given)}):"
    yield from _lines(steps, tuple(results), indent + "    ")
    yield f"{indent}    return ({listed})"
    yield f"{indent}({listed}) = checkpoint({name}, {', '.join(given)}, use_reentrant=False)"


def without_dead(program: Program) -> Program:
    """The program without statements whose results nobody reads and that write to nothing, and unread operands."""
    needed = set(program.outputs)
    kept: list[Step] = []
    for step in reversed(program.steps):
        if not step.made or needed & set(step.made) or writes(step):
            kept.append(step)
            needed |= set(step.read)
    operands = []
    for operand in reversed(program.operands):
        if operand.name in needed:
            operands.append(operand)
            needed |= set(_NAME.findall(operand.of))
    return replace(program, steps=tuple(kept[::-1]), operands=tuple(operands[::-1]))


_WRITES = re.compile(r"[a-z]_\(|[+\-*/]=|\] = |inplace=True|out=|, True\)$")


def writes(step: Step) -> bool:
    """Whether the statement may write to what it reads."""
    return _WRITES.search(step.text) is not None


def scope() -> dict[str, Any]:
    """The names around a program, as in a repro script."""
    import torch.nn.functional as functional
    from torch import nn
    from torch.utils.checkpoint import checkpoint

    return {
        "torch": torch, "F": functional, "nn": nn, "checkpoint": checkpoint, "no_grad": torch.no_grad,
        "enable_grad": torch.enable_grad, "autocast": torch.autocast,
    }  # fmt: skip


def operands(program: Program, seed: int, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The program's tensors by name. Equal seeds give equal values."""
    torch.manual_seed(seed)
    names = scope()
    for operand in program.operands:
        names[operand.name] = eval(operand.text(), names)
    return {o.name: names[o.name] for o in program.operands}
