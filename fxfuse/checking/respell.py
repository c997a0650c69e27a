"""Other spellings of a graph: the rows of `spellings`, applied at random places, each proven on the spot.

Besides the rows, any op may be called otherwise: which functions and methods spell it comes from the view's own table.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fxfuse.checking.judging import differ
from fxfuse.checking.running import call, same_bits
from fxfuse.checking.sketch import META, Sketch, quiet, values_of
from fxfuse.checking.spellings import IDENTITIES, ROWS
from fxfuse.view import ops
from fxfuse.view.rules import SEE_THROUGH


class Speller:
    """Rewrites one sketch, one random step at a time. ``at`` is the node being respelled."""

    def __init__(self, gm: fx.GraphModule, live: Sequence[Any], seed: int, ordered: frozenset[str]) -> None:
        self.sketch = Sketch(gm)
        self.ordered = ordered
        self.random = random.Random(seed)
        self.values = {self.sketch.mapping[n]: v for n, v in values_of(gm, live).items()}
        self.steps: list[str] = []
        self.at: fx.Node = next(iter(self.sketch.graph.nodes))

    # --- what rows use --------------------------------------------------------------------------------------------

    def function(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self._valued(self.sketch.function(target, *args, **kwargs))

    def method(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        return self._valued(self.sketch.method(name, *args, **kwargs))

    def over(self, numerator: Any, v: fx.Node) -> fx.Node:
        """``numerator / sqrt(v)``."""
        return self.function(operator.truediv, numerator, self.method("sqrt", v))

    def shuffled_product(self, a: fx.Node, b: fx.Node) -> fx.Node:
        pair = [a, b]
        self.random.shuffle(pair)
        return self.function(torch.mul, *pair)

    def example(self, node: Any) -> Any:
        return node.meta[META]

    def sizes(self, node: fx.Node) -> tuple[Any, ...]:
        """The sizes of a tensor, as a graph names them: symbolic ones are asked for."""
        shape = self.example(node).shape
        return tuple(size if isinstance(size, int) else self.method("size", node, i) for i, size in enumerate(shape))

    def spells(self, node: fx.Node, op: str) -> bool:
        spec = ops.spec_of(node)
        return spec is not None and spec.name == op and ops.bind(spec, node.args, node.kwargs) is not None

    def arguments(self, node: fx.Node) -> dict[str, Any]:
        spec = ops.spec_of(node)
        return (ops.bind(spec, node.args, node.kwargs) if spec is not None else None) or {}

    # --- one step -------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One random rewrite, undone where it does not give the same bits."""
        calls = [n for n in self.sketch.graph.nodes if n.op.startswith("call_") and self._is_tensor(n)]
        self.at = self.random.choice(calls)
        kind = self.random.choice(
            [self._by_row, self._by_row, self._by_form, self._by_form, self._by_identity, self._twice]
        )
        before = {id(n) for n in self.sketch.graph.nodes}
        try:
            with self.sketch.before(self.at):
                name, made, operand, rounds = kind()
        except Exception:  # not spelled so in torch; another step will do
            name, made, operand, rounds = "", None, self.at, False
        if made is None or not self._equal(made, operand, rounds):
            self._undo(before)
            return
        self.steps.append(f"{self.at.name}: {name}")
        if operand is self.at:
            made.meta = {**self.at.meta, META: made.meta[META]}
            self.at.replace_all_uses_with(made)
            self.sketch.graph.erase_node(self.at)
        else:
            self.at.replace_input_with(operand, made)

    def _equal(self, made: fx.Node, original: fx.Node, rounds: bool) -> bool:
        ours, theirs = self.values.get(made), self.values.get(original)
        if not isinstance(ours, torch.Tensor) or not isinstance(theirs, torch.Tensor):
            return False
        if same_bits(ours, theirs):
            return True
        return rounds and ours.dtype in (torch.float32, torch.float64) and differ(ours, theirs) is None

    def _by_row(self) -> tuple[str, fx.Node | None, fx.Node, bool]:
        """Another op, by a row of the table."""
        spec = ops.spec_of(self.at)
        rows = [r for r in ROWS.get(spec.name, ()) if r.is_equated] if spec is not None else []
        args = self.arguments(self.at)
        if not rows or not args:
            return "", None, self.at, False
        chosen = self.random.choice(rows)
        return chosen.name, chosen.write(self, args), self.at, chosen.rounds

    def _by_form(self) -> tuple[str, fx.Node | None, fx.Node, bool]:
        """The same op called otherwise: function, method, operator; by position or keyword; operands commuted."""
        spec, args = ops.spec_of(self.at), self.arguments(self.at)
        if spec is None or not args or spec.variadic is not None or spec.name == "to":
            return "", None, self.at, False
        if spec.commutative and spec.name not in self.ordered and self.random.random() < 0.5:
            args["input"], args["other"] = args["other"], args["input"]
        functions: list[Any] = [f for f, known in ops.FUNCTIONS.items() if known.name == spec.name]
        methods = [m for m, known in ops.METHODS.items() if known.name == spec.name]
        target = self.random.choice([*functions, *methods])
        names = [name for name, _ in (ops.METHODS[target] if isinstance(target, str) else ops.FUNCTIONS[target]).params]
        if not set(args) <= set(names):
            return "", None, self.at, False
        whole = [name for name in names if name in args]
        leading = next((i for i, name in enumerate(names) if name not in args), len(names))
        split = self.random.randint(1, leading) if leading > 1 else leading
        positional = [args[name] for name in names[:split]]
        keywords = {name: args[name] for name in whole if name not in names[:split]}
        if isinstance(target, str):
            return f"method {target}", self.method(target, *positional, **keywords), self.at, False
        return f"function {ops.function_name(target)}", self.function(target, *positional, **keywords), self.at, False

    def _by_identity(self) -> tuple[str, fx.Node | None, fx.Node, bool]:
        """An operand, under an op that the view sees through."""
        operands = [n for n in self.at.all_input_nodes if self._is_tensor(n)]
        names = [name for name, (op, _) in IDENTITIES.items() if op in SEE_THROUGH]
        if not operands or not names:
            return "", None, self.at, False
        operand, name = self.random.choice(operands), self.random.choice(names)
        return name, IDENTITIES[name][1](self, operand), operand, False

    def _twice(self) -> tuple[str, fx.Node | None, fx.Node, bool]:
        """A cast of several readers, made once more for this one."""
        shared = [n for n in self.at.all_input_nodes if self.spells(n, "to") and len(n.users) > 1]
        if not shared:
            return "", None, self.at, False
        operand = self.random.choice(shared)
        return (
            "a cast made twice",
            self._valued(self.sketch._made(self.sketch.graph.node_copy(operand))),
            operand,
            False,
        )

    def _is_tensor(self, node: fx.Node) -> bool:
        return isinstance(node.meta.get(META), torch.Tensor)

    def _valued(self, node: fx.Node) -> fx.Node:
        with torch.no_grad():
            self.values[node] = call(node, self.values.__getitem__)
        return node

    def _undo(self, before: set[int]) -> None:
        for node in reversed(list(self.sketch.graph.nodes)):
            if id(node) not in before:
                self.values.pop(node, None)
                self.sketch.graph.erase_node(node)


def respell(
    gm: fx.GraphModule, live: Sequence[Any], seed: int, *, steps: int = 12, ordered: frozenset[str] = frozenset()
) -> tuple[fx.GraphModule, list[str]]:
    """The graph in other words, and which ones; the same for the same seed.

    Args:
        ordered: commutative ops whose operands keep their order.
    """
    speller = Speller(gm, live, seed, ordered)
    with quiet():
        for _ in range(steps):
            speller.step()
    made = speller.sketch.module()
    speller.sketch.refresh()
    return made, speller.steps
