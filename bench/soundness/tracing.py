"""A program as the torch-level graph that Dynamo would capture: quickly, by running it once on fake tensors."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.overrides import TorchFunctionMode

from bench.soundness.program import BUFFER, PARAMETER, Program, scope

_FORWARD = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv, "div": operator.truediv,
    "pow": operator.pow, "matmul": operator.matmul,
}  # fmt: skip
_OPERATORS: dict[str, Any] = {
    **{f"__{name}__": op for name, op in _FORWARD.items()},
    "__neg__": operator.neg, "__invert__": operator.invert, "__getitem__": operator.getitem,
    "__setitem__": operator.setitem, "__iadd__": operator.iadd, "__isub__": operator.isub, "__imul__": operator.imul,
    "__itruediv__": operator.itruediv, "__idiv__": operator.itruediv, "__ipow__": operator.ipow,
    "__lt__": operator.lt, "__le__": operator.le, "__gt__": operator.gt, "__ge__": operator.ge,
    "__eq__": operator.eq, "__ne__": operator.ne,
}  # fmt: skip
_REVERSED = {f"__r{name}__": op for name, op in _FORWARD.items()}
_METADATA = {"size", "dim", "numel", "stride", "is_floating_point", "element_size", "ndimension", "is_contiguous"}
_PROPERTIES = {"T", "mT", "data"}  # the others are constants to Dynamo


@dataclass(frozen=True)
class Source:
    """Where Dynamo would have found an operand: an attribute of the module whose forward runs."""

    member: str
    base: Source | None = None


@dataclass
class Captured:
    """A torch-level graph. ``names`` are its placeholders' operands (or sizes) in order."""

    gm: fx.GraphModule
    names: tuple[str, ...]


class Recorder(TorchFunctionMode):
    """Records each torch call that is made under it as a node, with its result as the node's example."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__()
        self.graph = graph
        self.nodes: dict[int, fx.Node] = {}
        self.symbols: dict[Any, fx.Node] = {}
        self.parts: dict[int, tuple[fx.Node, int]] = {}
        self.alive: list[Any] = []
        self.bodies: dict[str, fx.GraphModule] = {}
        self.rebind = False
        self.paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        owner = getattr(func, "__self__", None)
        if name == "__get__" and owner is not None:
            result = func(*args, **kwargs)
            if owner.__name__ in _PROPERTIES:
                self.node("call_function", getattr, (args[0], owner.__name__), {}, result)
            return result
        result = func(*args, **kwargs)
        if name in _METADATA or name == "__len__":
            return result
        if name in _OPERATORS:
            self.node("call_function", _OPERATORS[name], args, kwargs, result)
        elif name in _REVERSED:
            self.node("call_function", _REVERSED[name], (args[1], args[0]), kwargs, result)
        elif name in _FORWARD and len(args) == 2 and not kwargs and getattr(torch, name, None) is not func:
            self.node("call_function", _FORWARD[name], args, kwargs, result)  # what `a * b` and `a.mul(b)` both call
        elif type(func).__name__ == "method_descriptor" or getattr(func, "__module__", "") == "torch._tensor":
            self.node("call_method", name, args, kwargs, result)
        else:
            self.node("call_function", func, args, kwargs, result)
        return result

    def node(self, op: str, target: Any, args: Any, kwargs: Any, result: Any) -> fx.Node:
        made = self.graph.create_node(op, target, self.lowered(tuple(args)), self.lowered(dict(kwargs)))
        if isinstance(result, tuple | list):
            made.meta["example_value"] = tuple(result)
            self.alive.append(result)
            self.parts.update({id(item): (made, i) for i, item in enumerate(result) if isinstance(item, torch.Tensor)})
        elif isinstance(result, torch.Tensor):
            self.bind(result, made)
        return made

    def bind(self, tensor: Any, node: fx.Node) -> None:
        node.meta["example_value"] = tensor
        known = self.nodes.get(id(tensor))
        # Written in place: Dynamo gives the result a new node, and who reads the old name reads the old node.
        if known is None or self.rebind:
            self.nodes[id(tensor)] = node
        self.rebind = not self.rebind if known is not None else self.rebind
        self.alive.append(tensor)

    def node_of(self, tensor: torch.Tensor) -> fx.Node:
        """The node that a reader of this tensor reads; a part of a tuple gets its own when it is first read."""
        known = self.nodes.get(id(tensor))
        if known is None:
            whole, i = self.parts[id(tensor)]
            known = self.graph.create_node("call_function", operator.getitem, (whole, i), {})
            known.meta["example_value"] = tensor
            self.nodes[id(tensor)] = known
        return known

    def lowered(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.node_of(value)
        if isinstance(value, torch.SymInt | torch.SymFloat):
            return self.symbolic(value.node.expr)
        if isinstance(value, tuple | list):
            return (
                type(value)(self.lowered(v) for v in value)
                if type(value) in (tuple, list)
                else tuple(self.lowered(v) for v in value)
            )
        if isinstance(value, dict):
            return {k: self.lowered(v) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(self.lowered(value.start), self.lowered(value.stop), self.lowered(value.step))
        return value

    def symbolic(self, expression: Any) -> Any:
        if expression in self.symbols:
            return self.symbols[expression]
        if expression.is_Integer:
            return int(expression)
        if not (expression.is_Add or expression.is_Mul):
            raise NotImplementedError(f"no node for the size {expression}")
        op = operator.add if expression.is_Add else operator.mul
        parts = [self.symbolic(a) for a in expression.args]
        made = parts[0]
        for part in parts[1:]:
            made = self.graph.call_function(op, (made, part))
        self.symbols[expression] = made
        return made

    # --- what leaves nodes of its own, though no torch function is called --------------------------------------------

    @contextlib.contextmanager
    def autocast(self, device: str, dtype: torch.dtype) -> Iterator[None]:
        module = torch.amp.autocast_mode
        entered = self.graph.call_function(module._enter_autocast, (device, dtype, True, None))
        with torch.autocast(device, dtype):
            yield
        self.graph.call_function(module._exit_autocast, (entered,))

    def checkpoint(self, body: Any, *args: Any, use_reentrant: bool) -> Any:
        graph = fx.Graph()
        inner = Recorder(graph)
        symbols = [e for e, n in self.symbols.items() if n.op == "placeholder"]
        for symbol in symbols:
            holder = graph.placeholder(str(symbol))
            holder.meta = dict(self.symbols[symbol].meta)
            inner.symbols[symbol] = holder
        distinct = list({id(a): a for a in args}.values())
        for i, arg in enumerate(distinct):
            holder = graph.placeholder(f"arg_{i}")
            holder.meta["example_value"] = arg
            inner.nodes[id(arg)] = holder
        self.paused = True
        outer = {name: body.__globals__[name] for name in self.special()}
        body.__globals__.update(inner.special())
        with inner:
            results = body(*args)
        body.__globals__.update(outer)
        self.paused = False
        graph.output(tuple(inner.node_of(r) for r in results))
        attribute = f"wrap_body_{len(self.bodies)}"
        self.bodies[attribute] = _module(inner, graph)
        holder = self.graph.get_attr(attribute)
        operands = [*(self.symbols[s] for s in symbols), *(self.node_of(a) for a in distinct)]
        target = torch.ops.higher_order.tag_activation_checkpoint
        node = self.graph.call_function(target, (holder, *operands), {"use_reentrant": use_reentrant})
        node.meta["example_value"] = tuple(results)
        for i, item in enumerate(results):
            part = self.graph.call_function(operator.getitem, (node, i))
            part.meta["example_value"] = item
            self.nodes[id(item)] = part
        self.alive.append(results)
        return results

    def special(self) -> dict[str, Any]:
        """What a program's names for regions mean while it is recorded."""
        return {
            "checkpoint": self.checkpoint, "autocast": self.autocast, "no_grad": torch.no_grad,
            "enable_grad": torch.enable_grad,
        }  # fmt: skip


def _module(recorder: Recorder, graph: fx.Graph) -> fx.GraphModule:
    root = torch.nn.Module()
    for name, body in recorder.bodies.items():
        root.add_module(name, body)
    return fx.GraphModule(root, graph)


def trace(program: Program, *, fake: bool = True) -> Captured:
    """The program's graph, by running it once: on fake tensors, or faster on real ones as stand-ins."""
    shape_env = None
    if any(o.dynamic for o in program.operands):
        shape_env = ShapeEnv()
    mode: Any = contextlib.nullcontext()
    if fake or shape_env is not None:
        mode = FakeTensorMode(shape_env=shape_env, allow_non_fake_inputs=False)
    graph = fx.Graph()
    recorder = Recorder(graph)
    names: list[str] = []
    given: dict[str, Any] = scope()
    symbols: dict[int, torch.SymInt] = {}
    if shape_env is not None:
        for size in sorted({o.shape[i] for o in program.operands for i in o.dynamic}):
            symbols[size] = _symbol(shape_env, size)
            node = graph.placeholder(f"s{size}")
            node.meta["example_value"] = symbols[size]
            recorder.symbols[symbols[size].node.expr] = node
            names.append(f"s{size}")
    fakes: list[torch.Tensor] = []
    with mode, torch.set_grad_enabled(program.grad):
        for operand in program.operands:
            one = _fake(operand, given, symbols)
            given[operand.name] = one
            fakes.append(one)
            node = graph.placeholder(operand.name)
            node.meta["example_value"] = one
            base = Source({PARAMETER: "_parameters", BUFFER: "_buffers"}.get(operand.kind, "inputs"))
            node._dynamo_source = Source(operand.name, base)
            recorder.nodes[id(one)] = node
            names.append(operand.name)
        recorder.alive += fakes
        function = program.function({**scope(), **recorder.special()})
        with recorder:
            results = function(*fakes)
        graph.output(tuple(recorder.node_of(r) for r in results))
    return Captured(_module(recorder, graph), tuple(names))


def _symbol(shape_env: Any, size: int) -> torch.SymInt:
    source = ConstantSource(f"s{size}")
    symbol = shape_env.create_symbol(size, source, DimDynamic.DYNAMIC)
    return shape_env.create_symintnode(symbol, hint=size, source=source)


def _fake(operand: Any, given: dict[str, Any], symbols: dict[int, torch.SymInt]) -> torch.Tensor:
    if operand.of:
        made = eval(operand.of, given)
    else:
        shape = [symbols[s] if i in operand.dynamic else s for i, s in enumerate(operand.shape)]
        made = torch.ones(shape, dtype=operand.dtype)
    if operand.kind == PARAMETER:
        return torch.nn.Parameter(made, requires_grad=operand.grad)
    return made.requires_grad_() if operand.grad else made
