"""`Match`: one place in a graph where a pattern holds, as constraints, gates and the editor see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import fx

from fxfuse.authoring import Dim, Pattern
from fxfuse.authoring.captures import is_param
from fxfuse.authoring.terms import CaptureTerm, ChoiceTerm, ManyTerm, OpTerm, Term, TermGraph
from fxfuse.view import Value, View
from fxfuse.view.ops import spec_of


class ConstraintFailed(Exception):
    """What :meth:`Match.require` raises; a constraint lets it pass."""

    def __init__(self, message: str, at: Any) -> None:
        super().__init__(message)
        self.at = at


class Match:
    """One place where a pattern holds. Captures are attributes: a Value, a number, or None for an absent one.

    Attributes:
        captures: name -> Value, literal, None, or for a ``many`` capture a tuple of these.
        variant: ``one_of`` name -> label.
        sizes: Dim -> its size here (an int or a SymInt).
        outputs: the values that the pattern returns, in its order; those of ``many`` one after another.
        root: the last of the outputs in graph order.
        interior: the operations inside, outputs included.
        nodes: the FX nodes that all of them stand for, in graph order.
        seen_through: further nodes inside, which the view takes for one of ``nodes`` (a cast to the same dtype).
        staying: those of them that others may read, because they stay where somebody does: what makes a ``keep`` value,
            and casts and views of what the kernel gets anyway.
        owned: those that go away with the rewrite.
    """

    _captured: list[Value] | None = None

    def __init__(
        self,
        view: View,
        pattern: Pattern,
        form: TermGraph,
        bound: Mapping[Term, Any],
        choices: Mapping[str, str],
        sizes: Mapping[Dim, Any],
        siblings: Mapping[ManyTerm, Sequence[Mapping[Term, Any]]] | None = None,
    ) -> None:
        self.view = view
        self.pattern = pattern
        self.form = form
        self.bound = dict(bound)
        self.siblings = dict(siblings or {})
        self.sizes = dict(sizes)
        self.captures: dict[str, Any] = dict.fromkeys(pattern.captures)
        on_path: set[str] = set()
        ops: dict[int, Value] = {}
        for terms in (self.bound, *(terms for group in self.siblings.values() for terms in group)):
            for term, operand in terms.items():
                if isinstance(term, OpTerm):
                    if type(operand) is Value and operand.leaf is None:
                        ops[id(operand)] = operand
                elif isinstance(term, ChoiceTerm):
                    on_path.add(term.name)
                elif isinstance(term, CaptureTerm) and terms is self.bound:
                    self.captures[term.name] = operand
        for group in self.siblings.values():
            self.captures.update(_columns(group))
        self.variant = {name: choices[name] for name in pattern.choices if name in on_path}
        self.outputs = tuple(self._outputs())
        order = view.effects.order
        self.root: Value = max(self.outputs, key=lambda v: order[v.node])
        captured = {id(v) for v in self.captured_values()}
        self.interior: list[Value] = [value for key, value in ops.items() if key not in captured]
        covered = {node for v in self.interior for node in v.nodes}
        self.nodes: tuple[fx.Node, ...] = tuple(sorted(covered, key=order.__getitem__))
        self.seen_through = tuple(self._find_seen_through(covered))
        self.staying = frozenset(self._find_staying(captured))
        self.owned = frozenset(covered - self.staying)

    def _outputs(self) -> Iterable[Value]:
        for term in self.form.outputs:
            if isinstance(term, ManyTerm):
                yield from (terms[term.element] for terms in self.siblings[term])
            else:
                yield self.bound[term]

    def captured_values(self, names: Iterable[str] | None = None) -> list[Value]:
        """The captured tensors and symbolic numbers (of these captures), those of ``many`` captures one by one."""
        if names is None:
            if self._captured is None:
                self._captured = self._values_of(self.captures)
            return self._captured
        return self._values_of(names)

    def _values_of(self, names: Iterable[str]) -> list[Value]:
        flat: list[Value] = []
        for captured in map(self.captures.__getitem__, names):
            if type(captured) is Value:
                flat.append(captured)
            elif type(captured) is tuple:
                flat += [value for value in captured if type(value) is Value]
        return flat

    @property
    def returns_a_tuple(self) -> bool:
        """Whether a kernel for this site returns a tuple of tensors rather than one."""
        return self.pattern.has_several_outputs

    def weight_values(self) -> list[Value]:
        """What the pattern captures as parameters."""
        return self.captured_values(name for name, capture in self.pattern.captures.items() if is_param(capture))

    def _find_seen_through(self, covered: set[fx.Node]) -> list[fx.Node]:
        view = self.view
        outputs = {id(v) for v in self.outputs}
        values = {id(v): v for v in self.interior if id(v) not in outputs}
        for node in (n for v in self.interior for n in v.absorbed):
            value = view.value(node)
            if value.node is node:  # and not a view of something else, such as a capture
                values[id(value)] = value
        found: dict[fx.Node, None] = {}
        for value in values.values():
            others = view.aliases(value)
            if len(others) > 1 or value.node not in covered:
                found.update((node, None) for node in others if node not in covered)
        return sorted(found, key=view.effects.order.__getitem__)

    def _find_staying(self, captured: set[int]) -> Iterable[fx.Node]:
        view = self.view
        outputs = {id(v) for v in self.outputs}
        kept = {id(v) for t, v in self.bound.items() if t.keep and isinstance(v, Value)}
        makers = {n: v for v in self.interior for n in v.nodes} if kept else {}
        order = view.effects.order
        for value in sorted(self.interior, key=lambda v: -order[v.node]) if kept else self.interior:
            if id(value) in outputs:
                continue
            source = view.operand(value.args["input"]) if value.op == "cast" and value.owner is None else None
            if kept and id(value) not in kept:
                seen = dict.fromkeys([*value.nodes, *view.aliases(value)])
                readers = [makers[u] for n in seen for u in n.users if u in makers and makers[u] is not value]
                if readers and all(id(r) in kept for r in readers):
                    kept.add(id(value))
            if id(value) in kept or id(source) in captured:
                yield from value.nodes
        for node in (n for v in self.interior for n in v.absorbed):
            spec = spec_of(node)
            source = node.args[0] if spec is not None and spec.alias and node.args else None
            if isinstance(source, fx.Node) and id(view.value(source)) in captured:
                yield node

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["captures"][name]
        except KeyError:
            raise AttributeError(f"pattern {self.pattern.name!r} captures no {name!r}") from None

    def __repr__(self) -> str:
        variant = "".join(f" {name}={label}" for name, label in self.variant.items())
        return f"<match of {self.pattern.name!r} at {', '.join(map(str, self.outputs))}{variant}>"

    def require(self, condition: bool, message: str, at: Any = None) -> None:
        """Refuse this match, with the message as its reason (code CONSTRAINT), unless the condition holds."""
        if not condition:
            raise ConstraintFailed(message, at)


def _columns(group: Sequence[Mapping[Term, Any]]) -> dict[str, tuple[Any, ...] | None]:
    """The ``many`` captures of siblings, each as a tuple; None for one that every sibling lacks."""
    rows = [{t.name: v for t, v in terms.items() if isinstance(t, CaptureTerm)} for terms in group]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: tuple(row.get(name) for row in rows) for name in names}
    return {name: None if all(v is None for v in column) else column for name, column in columns.items()}
