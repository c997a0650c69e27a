"""One eager call of a model, written down: each torch function with the calls that made its operands, and each module.

Nothing of fxfuse takes part. Values are told apart by identity, and all are kept alive while the recording lives.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass(eq=False)
class Call:
    """One call of a torch function."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    makers: tuple[Call | None, ...] = ()
    """Of each tensor among the operands, in order, the call that made it; None for parameters and inputs."""
    readers: list[Call] = field(default_factory=list)
    path: str = ""
    result: Any = None

    @property
    def tensors(self) -> list[Tensor]:
        return list(_tensors((self.args, self.kwargs)))

    def maker(self, position: int) -> Call | None:
        """The call that made the tensor at this place of the operands."""
        return self.makers[position] if position < len(self.makers) else None


@dataclass(eq=False)
class ModuleCall:
    """One call of a module: what it was given first and what it gave, each with the call that made it."""

    module: nn.Module
    path: str
    given: Tensor | None
    given_by: Call | None
    made: Tensor | None = None
    made_by: Call | None = None


@dataclass
class Recording:
    """All calls, in order."""

    calls: list[Call] = field(default_factory=list)
    modules: list[ModuleCall] = field(default_factory=list)


def record(model: nn.Module, call: Callable[[], Any]) -> Recording:
    """What ``call`` does, which calls the model once in eager."""
    mode = _Mode({id(m): path for path, m in model.named_modules()})
    with _hooks(mode), mode:
        call()
    return mode.recording


class _Mode(TorchFunctionMode):
    def __init__(self, paths: dict[int, str]) -> None:
        super().__init__()
        self.recording = Recording()
        self.made: dict[int, Call] = {}
        self.stack: list[ModuleCall] = []
        self.paths = paths
        self.alive: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if name in _QUESTIONS:
            return result
        if any(result is t for t in _tensors((args, kwargs))) and not _writes(name):
            return result  # a cast to the dtype that is there, say: nobody reads anything
        makers = tuple(self.made.get(id(t)) for t in _tensors((args, kwargs)))
        call = Call(name, args, kwargs, makers, path=self.stack[-1].path if self.stack else "", result=result)
        for maker in {id(m): m for m in makers if m is not None}.values():
            maker.readers.append(call)
        for tensor in _tensors(result):
            self.alive.append(tensor)
            self.made[id(tensor)] = call
        self.recording.calls.append(call)
        return result

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = next(_tensors((args, kwargs)), None)
        call = ModuleCall(module, self.paths.get(id(module), ""), given, self.made.get(id(given)))
        self.alive.append(given)
        self.stack.append(call)

    def leave(self, module: nn.Module, args: Any, result: Any) -> None:
        call = self.stack.pop()
        call.made = next(_tensors(result), None)
        call.made_by = self.made.get(id(call.made))
        self.recording.modules.append(call)


_QUESTIONS = {
    "__get__",
    "size",
    "dim",
    "numel",
    "is_floating_point",
    "stride",
    "__len__",
    "is_contiguous",
    "get_device",
}
_IN_PLACE = {"__iadd__", "__imul__", "__isub__", "__itruediv__", "__setitem__"}


def _writes(name: str) -> bool:
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


@contextlib.contextmanager
def _hooks(mode: _Mode) -> Iterator[None]:
    def before(module: nn.Module, args: Any) -> None:
        mode.enter(module, args, {})

    handles = [
        nn.modules.module.register_module_forward_pre_hook(before),
        nn.modules.module.register_module_forward_hook(mode.leave),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
