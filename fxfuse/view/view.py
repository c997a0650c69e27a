"""`View`: what each node of a graph computes, in canonical words.

Nodes are read once, in graph order, up to the one that is asked for. The graph is never retraced or edited.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import fx

from fxfuse.compat import FakeTensor
from fxfuse.safeguards import safeguard
from fxfuse.view import ops, rules
from fxfuse.view.effects import Effects
from fxfuse.view.leaves import Leaf, LeafKind, classify
from fxfuse.view.numbers import SWAPPED_BY_PYTHON, rounds_its_number
from fxfuse.view.values import DtypeOf, SymbolicMeta, Value

SAME_LATER = safeguard("same_later", "a copy taken for its original, though one of them is written afterwards")
READS_STAY = safeguard("reads_stay", "an op of several nodes that would read an operand after a write to it")
UNWRITTEN_TWIN = safeguard("unwritten_twin", "two casts of one tensor taken for one, though it is written in between")

APART = safeguard("apart", "two casts that the graph returns, each in memory of its own, taken for one")

_NUMBER_FIRST = {"mul", "div"}
_LEAVES = {"placeholder", "get_attr"}
_ADDS_A_DIMENSION = {"unsqueeze", "stack"}  # whose ``dim`` counts the result's dimensions
_NONE: frozenset[str] = frozenset()
_METAS = (torch.Tensor, SymbolicMeta)
_ANY_DTYPE = {"linear", "part", "getitem"}
_MAX_STEPS = 16  # a canonical form is a few steps away; more would be a cycle among the rules


class _Untold(dict[str, Any]):
    """The arguments of a call that its row does not fit: a rule that asks for one is told None."""

    def __missing__(self, key: str) -> None:
        return None


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
        self.assumed_wide = False
        """Set by a rule that holds in fp32 and wider only, where a pattern leaves the dtype open."""
        self.effects = Effects(graph)
        self._examples = examples
        self._leaves = leaves
        self._pending = iter(tuple(graph.nodes))  # an iterator of FX starts anew in each loop
        self._values: dict[fx.Node, Value] = {}
        self._casts: dict[tuple[int, Any], Value] = {}
        self._others: dict[int, list[fx.Node]] = {}  # nodes that the view sees through, by the value that they are
        self._found: defaultdict[str, list[Value]] = defaultdict(list)
        self._wholes: dict[fx.Node, Value] = {}  # the value that absorbed a node

    @cached_property
    def positions(self) -> dict[fx.Node, int]:
        """The place of each placeholder in the flat argument list."""
        holders = (n for n in self.graph.nodes if n.op == "placeholder")
        return {node: i for i, node in enumerate(holders)}

    def find(self, op: str) -> list[Value]:
        """All values with this canonical op, in graph order."""
        self._read_all()
        return [value for value in self._found.get(op, ()) if not self._is_part_of_same(value)]

    def everything(self) -> list[Value]:
        """All values that the view knows by an op, in the order of their ops."""
        self._read_all()
        return [value for op in self._found for value in self.find(op)]

    def _is_part_of_same(self, value: Value) -> bool:
        """Whether only a value of this op reads this one, and stands for both: ``linear`` of flattened rows, say."""
        whole = self._wholes.get(value.node)
        if whole is None or whole.op != value.op or value.owner is not None:
            return False
        return all(user in whole.nodes for user in value.node.users)

    # --- one node ---------------------------------------------------------------------------------------------------

    def value(self, node: fx.Node) -> Value:
        """The canonical value of this node; for a node that the view sees through, its operand's.

        Nodes are read in graph order, up to the one that is asked for: rules look at operands of operands, and in a
        long chain that would be a deep recursion.
        """
        known = self._values.get(node)
        if known is not None:
            return known
        for at in self._pending:
            self._settle(at)
            if at is node:
                break
        return self._values[node]

    def _read_all(self) -> None:
        for node in self._pending:
            self._settle(node)

    def _settle(self, node: fx.Node) -> None:
        value = self._raw(node)
        if value.leaf is None and value.known:
            if value.op in rules.SEE_THROUGH:
                source = self._seen_through(value)
                if source is not None:
                    self._values[node] = source
                    self._others.setdefault(id(source), []).append(node)
                    return
            if value.op in rules.PREPARED:
                value = self._canonical(value)
            if value.op == "cast" and self._is_twin(value):
                return
        self._values[node] = value
        self._note(value)

    def _is_twin(self, value: Value) -> bool:
        """Whether an earlier value casts the same operand to the same dtype, and nothing writes to it: then it is one.

        The value is carried by the earlier node: whoever reads one of them may read that one.
        """
        source = self.operand(value.args["input"])
        if self.symbolic or not isinstance(source, Value):
            return False
        if not UNWRITTEN_TWIN(not (self.effects.writes and self.effects.is_written(source.node))):
            return False
        first = self._casts.setdefault((id(source), value.args["dtype"]), value)
        if first is value:
            return False
        if not APART(not (_may_be_returned(value.node) and any(map(_may_be_returned, (first.node, *first.twins))))):
            return False
        first.twins += (value.node,)
        self._values[value.node] = first
        return True

    def _note(self, value: Value) -> None:
        """Remember a new value and its parts by their op, and as readers of their operands."""
        for node in value.absorbed:
            self._wholes[node] = value
        self._found[value.op].append(value)
        for raw in value.args.values():
            kind = type(raw)
            if kind is fx.Node:
                readers = self._values[raw].readers
                if not readers or readers[-1] is not value:
                    readers.append(value)
            elif kind is Value or kind is tuple:
                self._note_operands(value)
                break

    def _note_operands(self, value: Value) -> None:
        """The same of operands that are no nodes: within tuples, or parts of what the value stands for."""
        pending = [value]
        while pending:
            at = pending.pop()
            for raw in operands_in(at.args):
                operand = self._values[raw] if type(raw) is fx.Node else raw
                readers = operand.readers
                if not readers or readers[-1] is not at:
                    readers.append(at)
                if operand is raw and raw.owner is not None and raw.owner.node is value.node and raw not in pending:
                    raw.owner = value  # the rule that made it may not have been the last
                    self._found[raw.op].append(raw)
                    pending.append(raw)

    def operand(self, raw: Any) -> Any:
        """The value of a node, a virtual value as it is, a constant as it is."""
        kind = type(raw)
        if kind is fx.Node:
            known = self._values.get(raw)
            return self.value(raw) if known is None else known
        if kind is Value:
            return raw
        if isinstance(raw, tuple):
            return tuple(map(self.operand, raw))
        if isinstance(raw, DtypeOf) and isinstance(raw.of, fx.Node):
            return DtypeOf(self.value(raw.of))
        return raw

    def meta(self, node: fx.Node) -> Any:
        """The node's example (fake) tensor, or None."""
        known = node.meta
        meta = known.get("example_value")
        if meta is None:
            meta = known.get("val")
        return meta if type(meta) is FakeTensor or isinstance(meta, _METAS) else None

    def dtype_reference(self, node: fx.Node) -> Any:
        """What ``x.to(other)`` or ``x.to(other.dtype)`` casts to."""
        if node.op == "call_function" and node.target is getattr and node.args[1] == "dtype":
            return DtypeOf(node.args[0])
        return DtypeOf(node)

    def dimension(self, value: Value) -> Any:
        """The ``dim`` of a value counted from the last one, where that can be told; else as written."""
        dim = value.args.get("dim")
        if dim is None:
            dim = ops.SPECS[value.op].defaults.get("dim")
        return self._from_the_end(value, dim)

    def _from_the_end(self, value: Value, dim: Any) -> Any:
        if isinstance(dim, tuple):
            if len(dim) != 1:
                dims = tuple(self._from_the_end(value, d) for d in dim)
                return tuple(sorted(dims)) if all(isinstance(d, int) for d in dims) else dims
            dim = dim[0]
        if type(dim) is not int or dim < 0:
            return dim
        source = value.args.get("input")
        if source is None:
            tensors = value.args.get("tensors")
            source = tensors[0] if isinstance(tensors, tuple) and tensors else None
        of = self.operand(source)
        rank = of.rank if isinstance(of, Value) else None
        return dim if rank is None else dim - rank - (value.op in _ADDS_A_DIMENSION)

    def _raw(self, node: fx.Node) -> Value:
        if node.op in _LEAVES:
            return self._leaf(node)
        spec, meta = ops.spec_of(node), node.meta.get("example_value")
        if type(meta) is not FakeTensor:
            meta = self.meta(node)
        if spec is None:
            if ops.is_transpose_attribute(node):
                return Value("t", {"input": node.args[0]}, node, meta=meta)
            return Value(ops.function_name(node.target), {}, node, known=False, meta=meta)
        name = spec.name
        if name == "to":
            cast = rules.cast_of(self, node)
            return cast if cast is not None else Value("to", {}, node, known=False, meta=meta)
        args = ops.bind(spec, node.args, node.kwargs)
        if args is None or (name in _NUMBER_FIRST and self._rounds_its_number(node, name, args["input"], meta)):
            return Value(name, _Untold(), node, known=False, meta=meta)
        value = Value(name, args, node, meta=meta)
        if self.symbolic:
            value.meta = SymbolicMeta(self._symbolic_dtype(value))
        if spec.has_dim and ("dim" in args or type(spec.defaults.get("dim")) is int):
            args["dim"] = self.dimension(value)
        return value

    def _rounds_its_number(self, node: fx.Node, op: str, first: Any, meta: Any) -> bool:
        if node.target in SWAPPED_BY_PYTHON:
            return False
        if isinstance(first, fx.Node):
            if self.symbolic or self.meta(first) is not None:  # of a pattern's Scalar its author is told
                return False
            first = None
        return rounds_its_number(op, first, getattr(meta, "dtype", None))

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

    def _seen_through(self, value: Value) -> Value | None:
        """The earlier value that this one is, or None."""
        if self.symbolic and value.op not in rules.WITHOUT_METADATA:
            return None
        for rule in rules.SEE_THROUGH[value.op]:
            same = rule(self, value)
            if same is not None:
                return same if SAME_LATER(self._same_later(value.node, same.node)) else None
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
            prepared = rules.PREPARED.get(value.op)
            if prepared is None:
                return value
            below = self._ops_below(value) if prepared.reads else _NONE
            if not prepared.always and prepared.reads.isdisjoint(below):
                return value
            for rule, reads in prepared.rules:
                if reads is not None and reads.isdisjoint(below):
                    continue
                self.assumed_wide = False
                better = rule(self, value)
                if better is not None and READS_STAY(not self._reads_moved(better)):
                    better.plain = value if self.assumed_wide else value.plain
                    if rule in rules.SETTLED:
                        return better
                    value = better
                    break
            else:
                return value
        raise RuntimeError(f"the view's rules do not settle at {value.node}: {' -> '.join(value.steps)}")

    def _ops_below(self, value: Value) -> set[str]:
        """The ops of a value's operands, in the words by which rules are registered."""
        below = set()
        last = None
        for raw in value.args.values():
            kind = type(raw)
            if kind is fx.Node or kind is Value:
                operand = self._values[raw] if kind is fx.Node else raw
                below.add(operand.op if operand is not last else "itself")
                last = operand
            elif kind is int or kind is float:
                below.add("number")
            elif kind is tuple:
                below.update(self.operand(one).op for one in operands_in(raw))
        return below

    def _symbolic_dtype(self, value: Value) -> Any:
        """The dtype of a pattern's value where its operands settle it."""
        if value.op in _ANY_DTYPE:
            return None
        dtypes = [self.operand(raw).dtype for raw in operands_in(value.args)]
        if torch.float32 in dtypes:
            return torch.float32
        return dtypes[0] if len(set(dtypes)) == 1 else None

    # --- who reads a value ------------------------------------------------------------------------------------------

    def aliases(self, value: Value) -> list[fx.Node]:
        """The value's node and every node that the view sees through to it."""
        if value.owner is not None:
            return []
        self._read_all()
        return [value.node, *value.twins, *self._others.get(id(value), ())]

    def readers(self, value: Value) -> list[Value]:
        """The canonical values that have this one as a direct operand, in graph order."""
        self._read_all()
        return value.readers

    def users(self, value: Value) -> list[Value]:
        """What reads this value, for a reader's eyes: also ops that the view does not know."""
        known = self.readers(value)
        if known:
            return known
        users = (user for node in self.aliases(value) for user in node.users if user.op != "output")
        return [v for v in map(self.value, users) if v is not value]


def operands_in(raw: Any) -> list[Any]:
    """The nodes and values among the arguments of a value, also those inside tuples."""
    found = []
    for one in raw.values() if isinstance(raw, dict) else raw:
        kind = type(one)
        if kind is fx.Node or kind is Value:
            found.append(one)
        elif kind is tuple:
            found += operands_in(one)
    return found


def _may_be_returned(node: fx.Node) -> bool:
    """Whether the graph returns this node or a view of it."""
    pending, seen = [node], {node}
    while pending:
        for user in pending.pop().users:
            if user.op == "output":
                return True
            spec = ops.spec_of(user)
            if user not in seen and (spec is None or spec.alias):
                seen.add(user)
                pending.append(user)
    return False


def _nodes_of(value: Value) -> Iterator[fx.Node]:
    for raw in operands_in(value.args):
        if isinstance(raw, fx.Node):
            yield raw
        else:
            yield from (raw.node,) if raw.owner is None else _nodes_of(raw)


def _attribute(module: torch.nn.Module, target: str) -> Any:
    at: Any = module
    for name in target.split("."):
        at = getattr(at, name, None)
    return at


__all__ = ["Leaf", "LeafKind", "View"]
