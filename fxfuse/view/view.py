"""`View`: what each node of a graph computes, in canonical words.

Lazy: a node is bound and canonicalised when the matcher first asks for it. The graph is never retraced or edited.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import fx

from fxfuse.view import ops, rules
from fxfuse.view.effects import Effects
from fxfuse.view.leaves import Leaf, LeafKind, classify
from fxfuse.view.values import DtypeOf, SymbolicMeta, Value

_MAX_STEPS = 16  # a canonical form is a few steps away; more would be a cycle among the rules


class View:
    """The canonical view of one FX graph.

    Args:
        graph: the captured graph; read only.
        examples: the live argument of each placeholder, where the caller has them.
        leaves: what each placeholder is, where the caller knows better (the body of a higher-order op).
        symbolic: the graph is a pattern's: no metadata, dtypes are symbols, nothing vanishes by metadata.
    """

    def __init__(
        self,
        graph: fx.Graph,
        examples: Sequence[Any] = (),
        *,
        leaves: Sequence[Leaf] | None = None,
        symbolic: bool = False,
    ) -> None:
        self.graph = graph
        self.symbolic = symbolic
        self.effects = Effects(graph)
        self._examples = examples
        self._leaves = leaves
        self._values: dict[fx.Node, Value] = {}
        self._casts: dict[tuple[int, Any], Value] = {}
        self._readers: dict[int, list[Value]] = {}

    @cached_property
    def positions(self) -> dict[fx.Node, int]:
        """The place of each placeholder in the flat argument list."""
        holders = (n for n in self.graph.nodes if n.op == "placeholder")
        return {node: i for i, node in enumerate(holders)}

    @cached_property
    def _by_spelling(self) -> dict[str, list[fx.Node]]:
        index: dict[str, list[fx.Node]] = {}
        for node in self.graph.nodes:
            spec = ops.spec_of(node)
            if spec is not None:
                index.setdefault(spec.name, []).append(node)
        return index

    def find(self, op: str) -> list[Value]:
        """All values with this canonical op, in graph order."""
        names = {op, *rules.ORIGINS.get(op, ())}
        candidates = [n for name in names for n in self._by_spelling.get(name, ())]
        candidates.sort(key=self.effects.order.__getitem__)
        found: dict[int, Value] = {}
        for node in candidates:
            for value in self._with_parts(self.value(node)):
                if value.op == op:
                    found.setdefault(id(value), value)
        return list(found.values())

    def _with_parts(self, value: Value) -> Iterator[Value]:
        yield value
        for raw in value.args.values():
            if isinstance(raw, Value) and raw.owner is not None:
                yield from self._with_parts(raw)

    # --- one node ---------------------------------------------------------------------------------------------------

    def value(self, node: fx.Node) -> Value:
        """The canonical value of this node; for a node that the view sees through, its operand's."""
        known = self._values.get(node)
        if known is not None:
            return known
        # Rules look at operands of operands; in a long chain of additions that would be a deep recursion.
        pending = [node]
        while pending:
            at = pending[-1]
            inputs = at.all_input_nodes if self._has_rules(at) else ()
            below = [n for n in inputs if n not in self._values and self._has_rules(n)]
            if below and len(pending) < len(self.effects.order):
                pending += below
                continue
            pending.pop()
            if at not in self._values:
                self._settle(at)
        return self._values[node]

    def _has_rules(self, node: fx.Node) -> bool:
        spec = ops.spec_of(node)
        return spec is not None and (spec.name in rules.RULES or spec.name in rules.SEE_THROUGH or spec.name == "to")

    def _settle(self, node: fx.Node) -> None:
        chain = [node]
        while True:
            value = self._raw(chain[-1])
            below = self._seen_through(value)
            if below is None:
                break
            known = self._values.get(below)
            if known is not None:
                value = known
                break
            chain.append(below)
        if value.leaf is None and value.known:
            value = self._canonical(value)
            value = self._first_of_twins(value)
        for seen in chain:
            self._values[seen] = value

    def _first_of_twins(self, value: Value) -> Value:
        """The first value that casts this operand to this dtype, where there is one and nothing writes to it."""
        source = self.operand(value.args["input"]) if value.op == "cast" and not self.symbolic else None
        if not isinstance(source, Value) or (self.effects.writes and self.effects.is_written(source.node)):
            return value
        first = self._casts.setdefault((id(source), value.args["dtype"]), value)
        if first is not value:
            order = self.effects.order
            # The value is carried by the earliest of its nodes: whoever reads one of them may read that one.
            earlier, later = sorted((first.node, value.node), key=order.__getitem__)
            first.node = earlier
            first.twins.append(later)
        return first

    def operand(self, raw: Any) -> Any:
        """The value of a node, a virtual value as it is, a constant as it is."""
        if isinstance(raw, fx.Node):
            return self.value(raw)
        if isinstance(raw, DtypeOf) and isinstance(raw.of, fx.Node):
            return DtypeOf(self.value(raw.of))
        return raw

    def meta(self, node: fx.Node) -> Any:
        """The node's example (fake) tensor, or None."""
        meta = node.meta.get("example_value")
        if meta is None:
            meta = node.meta.get("val")
        return meta if isinstance(meta, torch.Tensor | SymbolicMeta) else None

    def dtype_reference(self, node: fx.Node) -> Any:
        """What ``x.to(other)`` or ``x.to(other.dtype)`` casts to."""
        if node.op == "call_function" and node.target is getattr and node.args[1] == "dtype":
            return DtypeOf(node.args[0])
        return DtypeOf(node)

    def dimension(self, value: Value) -> Any:
        """The ``dim`` of a value as a negative int where that can be told; else as written."""
        dim = value.args.get("dim", dict(ops.SPECS[value.op].params).get("dim"))
        if isinstance(dim, tuple) and len(dim) == 1:
            dim = dim[0]
        source = self.operand(value.args["input"])
        if isinstance(dim, int) and dim >= 0 and isinstance(source, Value) and source.shape is not None:
            return dim - len(source.shape)
        return dim

    def _raw(self, node: fx.Node) -> Value:
        if node.op in {"placeholder", "get_attr"}:
            return self._leaf(node)
        spec = ops.spec_of(node)
        meta = self.meta(node)
        if ops.is_transpose_attribute(node):
            return Value("t", {"input": node.args[0]}, node, meta=meta)
        if spec is None:
            return Value(ops.function_name(node.target), {}, node, known=False, meta=meta)
        if spec.name == "to":
            cast = rules.cast_of(self, node)
            return cast if cast is not None else Value("to", {}, node, known=False, meta=meta)
        args = ops.bind(spec, node.args, node.kwargs)
        if args is None:
            return Value(spec.name, {}, node, known=False, meta=meta)
        value = Value(spec.name, args, node, meta=meta)
        if self.symbolic:
            value.meta = SymbolicMeta(self._symbolic_dtype(value))
        if "dim" in args:
            args["dim"] = self.dimension(value)
        return value

    def _leaf(self, node: fx.Node) -> Value:
        position = self.positions.get(node)
        if self._leaves is not None and position is not None:
            leaf = self._leaves[position]
        else:
            example = None
            if position is not None and position < len(self._examples):
                example = self._examples[position]
            elif node.op == "get_attr" and self.graph.owning_module is not None:
                example = _attribute(self.graph.owning_module, str(node.target))
            leaf = classify(node, position, example)
        return Value("input", {}, node, leaf=leaf, meta=self.meta(node))

    def _seen_through(self, value: Value) -> fx.Node | None:
        if value.leaf is not None or not value.known:
            return None
        if self.symbolic and value.op not in rules.WITHOUT_METADATA:
            return None
        for rule in rules.SEE_THROUGH.get(value.op, ()):
            if rule(self, value):
                source = value.args["input"]
                return source if isinstance(source, fx.Node) and self._same_later(value.node, source) else None
        return None

    def _same_later(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether a node and the operand that it equals stay equal: one storage, or no later write to either."""
        effects = self.effects
        if not effects.writes or effects.share_storage(node, source):
            return True
        made = effects.order[node]
        return not effects.written_after(node, made) and not effects.written_after(source, made)

    def _reads_moved(self, value: Value) -> bool:
        """Whether a write could come between where the nodes read an operand and where the canonical op would."""
        effects = self.effects
        if not effects.writes:
            return False
        direct = set(value.node.all_input_nodes)
        start = min((effects.order[n] for n in value.absorbed), default=effects.order[value.node])
        moved = [n for n in _nodes_of(value) if n not in direct]
        return any(effects.written_after(n, min(start, effects.order[n])) for n in moved)

    def _canonical(self, value: Value) -> Value:
        for _ in range(_MAX_STEPS):
            for _, rule in rules.RULES.get(value.op, ()):
                better = rule(self, value)
                if better is not None and not self._reads_moved(better):
                    value = better
                    break
            else:
                return value
        raise RuntimeError(f"the view's rules do not settle at {value.node}: {' -> '.join(value.steps)}")

    def _symbolic_dtype(self, value: Value) -> Any:
        """The dtype of a pattern's value where its operands settle it."""
        if value.op in {"linear", "part", "getitem"}:
            return None
        dtypes = []
        for raw in value.args.values():
            operand = self.operand(raw)
            if isinstance(operand, Value):
                dtypes.append(operand.dtype)
        if torch.float32 in dtypes:
            return torch.float32
        return dtypes[0] if len(set(dtypes)) == 1 else None

    # --- who reads a value ------------------------------------------------------------------------------------------

    def aliases(self, value: Value) -> list[fx.Node]:
        """The value's node and every node that the view sees through to it."""
        if value.owner is not None:
            return []
        out = [value.node, *value.twins]
        for node in out:
            out.extend(u for u in node.users if u not in out and self._is_alias(u, value))
        return out

    def _is_alias(self, node: fx.Node, value: Value) -> bool:
        return node.op.startswith("call_") and self.value(node) is value

    def readers(self, value: Value) -> list[Value]:
        """The canonical values that have this one as a direct operand, in graph order."""
        known = self._readers.get(id(value))
        if known is None:
            known = self._find_readers(value)
            if value.op != "cast":  # a further cast of the same may still be found, with readers of its own
                self._readers[id(value)] = known
        return known

    def _find_readers(self, value: Value) -> list[Value]:
        if value.owner is not None:
            return [v for v in self._with_parts(value.owner) if self._reads(v, value)]
        found: dict[int, Value] = {}
        for node in self.aliases(value):
            for user in node.users:
                for candidate in (user, *user.users):
                    if candidate.op == "output":
                        continue
                    for reader in self._with_parts(self.value(candidate)):
                        if reader is not value and self._reads(reader, value):
                            found.setdefault(id(reader), reader)
        order = self.effects.order
        return sorted(found.values(), key=lambda v: order[v.node])

    def users(self, value: Value) -> list[Value]:
        """What reads this value, for a reader's eyes: also ops that the view does not know."""
        known = self.readers(value)
        users = (user for node in self.aliases(value) for user in node.users if user.op != "output")
        return known or [v for v in map(self.value, users) if v is not value]

    def _reads(self, reader: Value, value: Value) -> bool:
        return any(self.operand(raw) is value for raw in reader.args.values())


def _nodes_of(value: Value) -> Iterator[fx.Node]:
    for raw in value.args.values():
        if isinstance(raw, fx.Node):
            yield raw
        elif isinstance(raw, Value):
            yield from (raw.node,) if raw.owner is None else _nodes_of(raw)


def _attribute(module: torch.nn.Module, target: str) -> Any:
    at: Any = module
    for name in target.split("."):
        at = getattr(at, name, None)
    return at


__all__ = ["Leaf", "LeafKind", "View"]
