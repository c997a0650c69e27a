"""The ways of a pattern: each combination of alternatives, of operands given and absent, and of numbers of siblings.

A way is traced from the reference function itself, with its labels decided, so that it is a program that can be run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from fxfuse.authoring import Pattern
from fxfuse.authoring.captures import is_many, is_optional, is_param, is_scalar
from fxfuse.checking.running import run

SIBLINGS = (2, 3)
"""How many siblings a `many` capture is tried with."""

MOST_OPTIONAL = 6
"""With more optional operands than these not every set of them is tried, but each alone, absent and given."""


@dataclass(frozen=True)
class Way:
    """One concrete form of a pattern.

    Attributes:
        variant: label of each ``one_of`` that the reference asked for.
        given: the optional operands that are there and that the result depends on.
        tensors: the captures, other than scalars, that the result depends on.
        scalars: the same of scalars.
        siblings: how many elements each ``many`` capture has; 1 where the pattern has none.
    """

    pattern: Pattern
    variant: Mapping[str, str]
    given: frozenset[str]
    tensors: tuple[str, ...]
    scalars: tuple[str, ...]
    siblings: int = 1
    _programs: dict[Any, fx.Graph] = field(default_factory=dict, compare=False, repr=False)

    def trace(self, scalars: Mapping[str, Any]) -> fx.Graph:
        """The reference as a graph: a placeholder for each input, a ``get_attr`` for each parameter."""
        return _trace(self.pattern, self.variant, self.given, self.siblings, scalars)

    def run(self, tensors: Mapping[str, Any], scalars: Mapping[str, Any]) -> Any:
        """The reference on these tensors, by the names that they have in the graph."""
        key = tuple(scalars.items())
        if key not in self._programs:
            self._programs[key] = self.trace(scalars)
        return run(self._programs[key], tensors)

    def elements(self, name: str) -> tuple[str, ...]:
        """The names that a capture's tensors have in the graph."""
        return _elements(self.pattern, name, self.siblings)

    def values(self, tensors: Mapping[str, Any], scalars: Mapping[str, Any]) -> dict[str, Any]:
        """The captures by name, as a reference or a kernel takes them; None for what the result does not depend on."""
        values: dict[str, Any] = {name: scalars.get(name) for name in self.pattern.captures}
        for name in self.tensors:
            elements = tuple(tensors[element] for element in self.elements(name))
            values[name] = elements if is_many(self.pattern.captures[name]) else elements[0]
        return values

    def __str__(self) -> str:
        words = [f"{name}={label}" for name, label in self.variant.items()]
        words += [f"+{name}" for name in self.pattern.captures if name in self.given]
        if self.siblings > 1:
            words.append(f"siblings={self.siblings}")
        return " ".join(words) or "plain"


class _Undecided(Exception):
    def __init__(self, choice: str) -> None:
        super().__init__(choice)
        self.choice = choice


class _Labels(dict[str, str]):
    """A variant that asks back: a choice without a label raises."""

    def __bool__(self) -> bool:
        return True

    def get(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            raise _Undecided(key)
        return self[key]


def ways(pattern: Pattern) -> list[Way]:
    """Every way of the pattern; ways whose result depends on the same choices and captures are one."""
    found: dict[Any, Way] = {}
    some = any(is_many(c) for c in pattern.captures.values())
    for siblings in SIBLINGS if some else (1,):
        for given in _presences(tuple(n for n, c in pattern.captures.items() if is_optional(c))):
            for way in _branches(pattern, given, siblings):
                found.setdefault((tuple(way.variant.items()), way.tensors, siblings), way)
    return list(found.values())


def _presences(optional: tuple[str, ...]) -> Iterator[frozenset[str]]:
    """Which optional operands are given: none, all, then every other set of them."""
    whole = (1 << len(optional)) - 1
    sets = list(range(1, whole))
    if len(optional) > MOST_OPTIONAL:
        sets = [bits for i in range(len(optional)) for bits in (1 << i, whole - (1 << i))]
    for bits in dict.fromkeys((0, whole, *sets)):
        yield frozenset(name for i, name in enumerate(optional) if bits >> i & 1)


def _branches(pattern: Pattern, given: frozenset[str], siblings: int) -> Iterator[Way]:
    pending: list[dict[str, str]] = [{}]
    while pending:
        variant = pending.pop()
        try:
            graph = _trace(pattern, _Labels(variant), given, siblings, None)
        except _Undecided as undecided:
            labels = pattern.choices[undecided.choice]
            pending += [{**variant, undecided.choice: label} for label in reversed(labels)]
            continue
        alive = {str(n.target) for n in graph.nodes if n.op in {"placeholder", "get_attr"}}
        depends = [n for n in pattern.captures if alive.intersection(_elements(pattern, n, siblings))]
        scalars = tuple(n for n in depends if is_scalar(pattern.captures[n]))
        tensors = tuple(n for n in depends if n not in scalars)
        yield Way(pattern, variant, given.intersection(tensors), tensors, scalars, siblings)


def _elements(pattern: Pattern, name: str, siblings: int) -> tuple[str, ...]:
    if is_many(pattern.captures[name]):
        return tuple(f"{name}_{i}" for i in range(siblings))
    return (name,)


def _trace(
    pattern: Pattern,
    variant: Mapping[str, str],
    given: frozenset[str],
    siblings: int,
    scalars: Mapping[str, Any] | None,
) -> fx.Graph:
    """The graph of what the result depends on; scalars without values become attributes of it."""
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    captures = pattern.captures
    values: dict[str, Any] = dict.fromkeys(captures)

    def make(name: str, create: Any) -> Any:
        made = tuple(fx.Proxy(create(element), tracer) for element in _elements(pattern, name, siblings))
        return made if is_many(captures[name]) else made[0]

    def is_here(name: str) -> bool:
        return name in given or not is_optional(captures[name])

    inputs = [n for n, c in captures.items() if not is_param(c) and not is_scalar(c) and is_here(n)]
    values.update({name: make(name, graph.placeholder) for name in inputs})
    values.update({name: make(name, graph.get_attr) for name, c in captures.items() if is_param(c) and is_here(name)})
    for name in (n for n, c in captures.items() if is_scalar(c)):
        values[name] = make(name, graph.get_attr) if scalars is None else scalars.get(name)
    result = pattern.reference(values, variant)
    graph.output(fx.node.map_aggregate(result, lambda r: r.node if isinstance(r, fx.Proxy) else r))
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op != "output":
            graph.erase_node(node)
    return graph
