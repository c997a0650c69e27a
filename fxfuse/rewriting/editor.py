"""`Editor`: replaces a match by a kernel's operations, and adds the inputs that its weights come through."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import GraphAppendingTracer

from fxfuse.compat import FakeTensor, constant_source
from fxfuse.kernels import Kernel
from fxfuse.match import Match
from fxfuse.params import Derived, Transform
from fxfuse.rewriting.copying import copy_graph, module_of
from fxfuse.view import Value
from fxfuse.view.values import same_shape


class RewriteError(Exception):
    """A replacement that does not fit the site; the graph is as it was."""


class Editor:
    """Edits a copy of the graph of ``gm``. ``mapping`` leads from the captured graph's nodes to the copy's."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.graph, self.mapping = copy_graph(gm)
        self.derived: list[Derived] = []
        self._inputs: dict[tuple[Transform, tuple[int, ...], str], fx.Node] = {}

    def replace(self, match: Match, kernel: Kernel, placement: str) -> tuple[fx.Node, ...]:
        """Put the kernel's operations in place of the match. Returns the new nodes; undoes itself where it fails.

        Raises:
            RewriteError: the replacement's dtype, shape or device differs from the original's.
        """
        root = self.mapping[match.root.node]
        before = {id(n) for n in self.graph.nodes}
        inputs_before = dict(self._inputs), list(self.derived)
        try:
            with self.graph.inserting_before(root):
                result = self._call(match, kernel, placement, root)
            self._check(result, root, kernel)
        except Exception:
            self._undo(before)
            self._inputs, self.derived = inputs_before
            raise
        made = tuple(n for n in self.graph.nodes if id(n) not in before)
        root.replace_all_uses_with(result)
        for twin in match.root.twins:
            self.mapping[twin].replace_all_uses_with(result)
        self.mapping[match.root.node] = result  # a later match may capture what this one made
        for node in reversed([self.mapping[n] for n in match.nodes]):
            if not node.users:
                self.graph.erase_node(node)
        return made

    def _call(self, match: Match, kernel: Kernel, placement: str, root: fx.Node) -> fx.Node:
        tracer = _Tracer(self.graph, root)
        operands: dict[str, Any] = {}
        for name, captured in match.captures.items():
            operands[name] = self._operand(captured, tracer)
        operands.update(match.variant)
        for name in match.pattern.choices:
            operands.setdefault(name, None)
        for name, transform in kernel.derive:
            sources = [match.captures[s] for s in transform.sources]
            if placement == "inline":
                operands[name] = transform(*(self._operand(s, tracer) for s in sources))
            else:
                node = self._derived(transform, sources, placement)
                operands[name] = tracer.proxy(node)
        result = kernel.function(**{name: operands[name] for name in kernel.parameters})
        if not isinstance(result, fx.Proxy):
            raise RewriteError(f"kernel {kernel.name!r} returned {type(result).__name__}, not one tensor")
        return result.node

    def _operand(self, captured: Any, tracer: _Tracer) -> Any:
        return tracer.proxy(self.mapping[captured.node]) if isinstance(captured, Value) else captured

    def _derived(self, transform: Transform, sources: list[Value], placement: str) -> fx.Node:
        """The placeholder of a derived operand, one for each (transform, sources)."""
        positions = []
        for source in sources:
            if source.leaf is None or source.leaf.position is None:
                raise RewriteError(f"{source.node.name} is not an input of this graph")
            positions.append(source.leaf.position)
        key = (transform, tuple(positions), placement)
        if key in self._inputs:
            return self._inputs[key]
        fakes = [s.meta for s in sources]
        with _mode_of(fakes), torch.no_grad():
            example = transform(*(f.detach() for f in fakes))
        last = [n for n in self.graph.nodes if n.op == "placeholder"][-1]
        with self.graph.inserting_after(last):
            node = self.graph.placeholder(f"fxfuse_{'_'.join(transform.sources)}_{len(self.derived)}")
        node.meta = {"example_value": example, "tensor_dict": {"_dynamo_static_input_type": "unguarded"}}
        node._dynamo_source = constant_source(node.name)
        self._inputs[key] = node
        self.derived.append(Derived(transform, tuple(positions), placement))
        return node

    def _check(self, result: fx.Node, root: fx.Node, kernel: Kernel) -> None:
        new, old = _meta(result), _meta(root)
        if new is None or old is None:
            return
        if new.dtype != old.dtype or new.device != old.device or not same_shape(tuple(new.shape), tuple(old.shape)):
            raise RewriteError(
                f"kernel {kernel.name!r} gives {new.dtype} {tuple(new.shape)} on {new.device}; "
                f"the site gives {old.dtype} {tuple(old.shape)} on {old.device}"
            )
        if _layout(new) != _layout(old):
            raise RewriteError(f"kernel {kernel.name!r} gives strides {new.stride()}; the site gives {old.stride()}")

    def _undo(self, before: set[int]) -> None:
        for node in reversed(list(self.graph.nodes)):
            if id(node) not in before:
                self.graph.erase_node(node)

    def finish(self, bodies: Mapping[str, fx.GraphModule]) -> fx.GraphModule:
        """The rewritten module. ``bodies`` replace the graphs of higher-order ops, by attribute name."""
        self.graph.lint()
        made = module_of(self.gm, self.graph)
        for name, body in bodies.items():
            setattr(made, name, body)
        return made


def _meta(node: fx.Node) -> Any:
    value = node.meta.get("example_value", node.meta.get("val"))
    return value if isinstance(value, torch.Tensor) else None


def _layout(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """The strides that matter: of sizes other than one. None where sizes are symbolic."""
    pairs = list(zip(tensor.shape, tensor.stride(), strict=True))
    if not all(isinstance(size, int) and isinstance(stride, int) for size, stride in pairs):
        return None
    return tuple(stride for size, stride in pairs if size != 1) if tensor.numel() else ()


def _mode_of(values: Any) -> Any:
    for value in values:
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return contextlib.nullcontext()


class _Operand(fx.Proxy):
    """A proxy that answers for dtype, device and static sizes with what is known, so a kernel may branch on them."""

    def _tensor(self) -> Any:
        return _meta(self.node)

    def __getattr__(self, name: str) -> Any:
        if name in {"dtype", "device", "ndim", "is_cuda"}:
            tensor = _meta(self.node)
            if tensor is not None:
                return getattr(tensor, name)
        if name == "shape":
            tensor = _meta(self.node)
            if tensor is not None and all(isinstance(s, int) for s in tensor.shape):
                return tuple(tensor.shape)
        return super().__getattr__(name)


class _Tracer(GraphAppendingTracer):
    """Appends a kernel's operations to the graph, each with its example value and the site's source lines."""

    def __init__(self, graph: fx.Graph, root: fx.Node) -> None:
        super().__init__(graph)
        self.site_meta: dict[str, Any] = {k: root.meta[k] for k in ("stack_trace", "nn_module_stack") if k in root.meta}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Operand(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta.update(self.site_meta)
        self._propagate(node)
        return node

    def _propagate(self, node: fx.Node) -> None:
        missing = False

        def example(n: fx.Node) -> Any:
            nonlocal missing
            value = n.meta.get("example_value", n.meta.get("val"))
            missing = missing or value is None
            return value

        args = fx.map_arg(node.args, example)
        kwargs = fx.map_arg(node.kwargs, example)
        if missing:
            return
        flat = [v for v in fx.node.map_aggregate((args, kwargs), lambda v: v) if v is not None]
        tensors = [a for a in _flatten(flat) if isinstance(a, torch.Tensor)]
        with _mode_of(tensors), torch.no_grad():
            if node.op == "call_function":
                target: Any = node.target  # of a call_function, a callable
                node.meta["example_value"] = target(*args, **kwargs)
            elif node.op == "call_method":
                node.meta["example_value"] = getattr(args[0], str(node.target))(*args[1:], **kwargs)


def _flatten(values: Any) -> list[Any]:
    if isinstance(values, tuple | list):
        return [v for item in values for v in _flatten(item)]
    if isinstance(values, Mapping):
        return [v for item in values.values() for v in _flatten(item)]
    return [values]
