"""Words of a reference function beyond PyTorch's: alternatives, siblings, values that others may read, order.

Each means the same in both lives of a reference function: traced on symbols it becomes a term, and run on tensors
(as the oracle, or as the ``reference`` kernel) it computes.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fxfuse.errors import PatternError, unknown

if TYPE_CHECKING:
    from fxfuse.authoring.trace import Tracing

TRACING: contextvars.ContextVar[Tracing | None] = contextvars.ContextVar("fxfuse_tracing", default=None)
_CHOSEN: contextvars.ContextVar[_Chosen | None] = contextvars.ContextVar("fxfuse_chosen", default=None)

Alternative = Callable[[], Any]


class Occurrences:
    """Numbers the places of `one_of.each`: the same whether all alternatives are run, to trace them, or one of them."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._scope = ""

    def next_of(self, name: str) -> str:
        """The name of the next place: ``name_1``; inside an alternative of another choice, ``choice_label_name_1``."""
        full = self._scope + name
        count = self._counts[full] = self._counts.get(full, 0) + 1
        return f"{full}_{count}"

    @contextlib.contextmanager
    def inside(self, name: str, label: str) -> Iterator[None]:
        """Number what is run in here by itself, since other alternatives may not be run."""
        outer, self._scope = self._scope, f"{self._scope}{name}_{label}_"
        try:
            yield
        finally:
            self._scope = outer


class _Chosen:
    """The variant that a reference runs with."""

    def __init__(self, variant: Mapping[str, str]) -> None:
        self.variant = variant
        self.occurrences = Occurrences()

    def take(self, name: str, alternatives: Mapping[str, Alternative]) -> Any:
        label = self.variant.get(name)
        if label is None or label not in alternatives:
            raise PatternError(unknown(f"choice for one_of({name!r})", label, alternatives))
        with self.occurrences.inside(name, label):
            return alternatives[label]()


class _OneOf:
    def __call__(self, name: str, /, **alternatives: Alternative) -> Any:
        """Any one of these spellings. Which one a site has becomes the variant ``{name: label}`` of its match.

        Args:
            name: what the kernel is told the choice by. The same name twice in a pattern is one choice.
            alternatives: label -> function of no arguments; each returns a tensor, or all return tuples of one length.

        In fp32 two alternatives may coincide (casts vanish); then the first declared is the one reported.
        """
        tracing = TRACING.get()
        if tracing is not None:
            return tracing.choose(name, alternatives)
        return (_CHOSEN.get() or _Chosen({})).take(name, alternatives)

    def each(self, name: str, /, **alternatives: Alternative) -> Any:
        """Like ``one_of``, chosen anew at each place: the variant has ``name_1``, ``name_2``, ... as they are run.

        Inside the alternative ``label`` of another choice the places are ``choice_label_name_1``, and so on.
        """
        tracing = TRACING.get()
        if tracing is not None:
            return tracing.choose(tracing.occurrences.next_of(name), alternatives)
        chosen = _CHOSEN.get() or _Chosen({})
        return chosen.take(chosen.occurrences.next_of(name), alternatives)


one_of = _OneOf()


def keep(value: Any) -> Any:
    """A value that others may read: the site is matched all the same, and the value is computed for them as before.

    Without it, a value inside a pattern that anything outside reads is a reason to refuse (EXTERNAL_USE).
    """
    tracing = TRACING.get()
    return value if tracing is None else tracing.flag(value, "keep")


def ordered(value: Any) -> Any:
    """The result of a commutative op whose operands match only in the order written."""
    tracing = TRACING.get()
    return value if tracing is None else tracing.flag(value, "ordered")


def many(function: Callable[..., Any], /, *captures: Any, least: int = 2) -> tuple[Any, ...]:
    """Any number of siblings: ``function`` of one element each of captures declared with ``many=True``.

    ``return many(lambda w: F.linear(x, w), weights)`` matches every linear of ``x``; the results are outputs of the
    pattern, in graph order. Sizes that only ``many`` captures name may differ between siblings.

    Args:
        function: from one element of each capture to one tensor.
        captures: parameters of the reference that are declared with ``many=True``.
        least: fewer siblings than this are no match.
    """
    tracing = TRACING.get()
    if tracing is not None:
        return tracing.several(function, captures, least)
    counts = {len(c) for c in captures if c is not None}
    if len(counts) != 1:
        raise PatternError(
            f"many(...) needs captures of one length; given {[c if c is None else len(c) for c in captures]}."
        )
    (count,) = counts
    columns = [(None,) * count if c is None else c for c in captures]
    return tuple(function(*row) for row in zip(*columns, strict=True))


def run_reference(function: Callable[..., Any], values: Mapping[str, Any], variant: Mapping[str, str]) -> Any:
    """The reference itself, on real tensors or proxies, with the alternatives named by ``variant``."""
    token = _CHOSEN.set(_Chosen(variant))
    try:
        return function(**values)
    finally:
        _CHOSEN.reset(token)
