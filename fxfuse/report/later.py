"""What is made when somebody reads it, so that a report nobody reads costs next to nothing: `Later` and `Sites`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from fxfuse.report.record import Site

T = TypeVar("T")


class Later(Sequence[T]):
    """The items that ``make`` gives, once; equal to a tuple of them.

    ``make`` may hold plain data only: a graph, a module or a tensor would live as long as the report.
    """

    __slots__ = ("_items", "_make")

    def __init__(self, make: Callable[[], Iterable[T]]) -> None:
        self._make: Callable[[], Iterable[T]] | None = make
        self._items: tuple[T, ...] = ()

    def _all(self) -> tuple[T, ...]:
        if self._make is not None:
            self._items, self._make = tuple(self._make()), None
        return self._items

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...

    def __getitem__(self, index: int | slice) -> Any:
        return self._all()[index]

    def __len__(self) -> int:
        return len(self._all())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Later | tuple) and self._all() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return repr(self._all())

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[T, ...]:
        return self._all()

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (self._all(),)


class Sites(Later["Site"]):
    """A report's sites, each with its pattern and outcome, which are known before any of them is made.

    The makers hold plain data only, as those of every :class:`Later`.
    """

    __slots__ = ("kinds",)

    def __init__(self, rows: Sequence[tuple[tuple[str, str], Callable[[], Site]]]) -> None:
        self.kinds = [kind for kind, _ in rows]
        super().__init__(lambda: [make() for _, make in rows])


class SitesField:
    """The field ``sites`` of a report: given as a sequence or as :class:`Sites`, read as a tuple."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, report: Any, owner: type | None = None) -> tuple[Site, ...]:
        if report is None:
            return ()  # the field's default
        held = report.__dict__[self._name]
        if not isinstance(held, tuple):
            held = report.__dict__[self._name] = tuple(held)
        made: tuple[Site, ...] = held
        return made

    def __set__(self, report: Any, sites: Sequence[Site]) -> None:
        report.__dict__[self._name] = sites if isinstance(sites, Sites) else tuple(sites)

    def kinds(self, report: Any) -> list[tuple[str, str]]:
        """Pattern and outcome of each site."""
        held = report.__dict__[self._name]
        return held.kinds if isinstance(held, Sites) else [(s.pattern, s.outcome) for s in held]
