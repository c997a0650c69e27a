"""`Builder`: grows a program statement by statement; each runs at once, so sizes and dtypes are known, and what
PyTorch itself refuses is never in the program."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import torch

from bench.soundness.program import INPUT, PARAMETER, Operand, Program, Step, scope

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class Builder:
    """A program in the making. ``env`` holds the value of every name so far."""

    def __init__(self, rng: random.Random, *, grad: bool = False) -> None:
        self.rng = rng
        self.grad = grad
        self.operands: list[Operand] = []
        self.steps: list[Step] = []
        self.env: dict[str, torch.Tensor] = {}
        self.names: dict[str, Any] = dict(scope())
        self.outputs: list[str] = []
        self.results: list[str] = []
        self.inner: set[str] = set()
        self.returned: set[int] = set()  # results of the piece at hand that the program returns
        self.focus: list[str] = []
        self.region: tuple[str, ...] = ()
        self._counts = {"x": 0, "p": 0, "b": 0, "t": 0}

    def _name(self, kind: str) -> str:
        self._counts[kind] += 1
        return f"{kind}{self._counts[kind] - 1}"

    def operand(
        self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, kind: str = INPUT, **more: Any
    ) -> str:
        """A new operand of the program."""
        grad = more.pop("grad", self.grad and dtype.is_floating_point and self.rng.random() < 0.7)
        made = Operand(self._name(kind), tuple(shape), dtype, grad, **more)
        self.operands.append(made)
        value = eval(made.text(), self.names)
        self.names[made.name] = self.env[made.name] = value
        return made.name

    def weight(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, **more: Any) -> str:
        return self.operand(shape, dtype, PARAMETER, **{"scale": 0.5, **more})

    def emit(self, expression: str) -> str | None:
        """A new value; None where PyTorch refuses the expression, or its value is no tensor."""
        try:
            with self._regions():
                value = eval(expression, self.names)
        except Exception:
            return None
        if not isinstance(value, torch.Tensor):
            return None
        name = self._name("t")
        self.names[name] = self.env[name] = value
        self.steps.append(Step(f"{name} = {expression}", self.region))
        return name

    def run(self, statement: str) -> bool:
        """A statement that makes no value of its own; False where PyTorch refuses it."""
        try:
            with self._regions():
                exec(statement, self.names)
        except Exception:
            return False
        self.steps.append(Step(statement, self.region))
        return True

    @contextlib.contextmanager
    def _regions(self) -> Any:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(self.grad))
            for region in self.region:
                if region == "autocast":
                    stack.enter_context(torch.autocast("cpu", torch.bfloat16))
                elif region in {"no_grad", "enable_grad"}:
                    stack.enter_context(torch.set_grad_enabled(region == "enable_grad"))
            yield

    def mark(self) -> tuple[int, int, int]:
        """A place to come back to."""
        return len(self.operands), len(self.steps), len(self.env)

    def back_to(self, mark: tuple[int, int, int]) -> None:
        """Forget what was added since."""
        operands, steps, values = mark
        del self.operands[operands:], self.steps[steps:]
        for name in list(self.env)[values:]:
            del self.env[name], self.names[name]

    def values(self) -> list[str]:
        """Names of tensors to work on, the later ones first; seldom one from inside a piece."""
        hidden = self.inner if self.rng.random() > 0.1 else ()
        return [n for n, v in reversed(self.env.items()) if v.dtype.is_floating_point and n not in hidden]

    def like(self, shape: tuple[int, ...]) -> list[str]:
        """Values of this shape, parameters left out."""
        return [n for n, v in self.env.items() if n[0] != PARAMETER and tuple(v.shape) == tuple(shape)]

    def program(self) -> Program:
        """What was built; the values that nobody reads are returned, and those that were asked for."""
        read = {name for step in self.steps for name in step.read}
        unread = [n for n in self.env if n.startswith("t") and n not in read]
        returned = [n for n in self.results if self.rng.random() < 0.3]
        outputs = tuple(dict.fromkeys([*unread, *self.outputs, *returned])) or tuple(self.env)[-1:]
        return Program(tuple(self.operands), tuple(self.steps), outputs, tuple(self.focus), self.grad)
