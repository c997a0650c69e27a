"""The pattern library: packs found by entry point, and the names by which their patterns are known."""

from __future__ import annotations

import functools
import pkgutil
import warnings
from importlib import import_module, metadata

from fxfuse.authoring import Pattern
from fxfuse.errors import OptionError, unknown

GROUP = "fxfuse.patterns"


_BROKEN: dict[str, str] = {}


def packs() -> dict[str, tuple[str, str]]:
    """Every installed pack by name: what its entry point names, and why it cannot be loaded, or an empty string."""
    all_patterns()
    return {e.name: (e.value, _BROKEN.get(e.name, "")) for e in metadata.entry_points(group=GROUP)}


@functools.cache
def all_patterns() -> dict[str, Pattern]:
    """Every pattern of every installed pack, by ``pack::name``; a pack that fails to import is warned about."""
    _BROKEN.clear()
    found: dict[str, Pattern] = {}
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda e: (e.name != "fxfuse", e.name)):
        try:
            module = entry.load()
            pages = [module]
            found_pages = [page.name for page in pkgutil.iter_modules(getattr(module, "__path__", ()))]
            pages += [import_module(f"{module.__name__}.{name}") for name in found_pages]
        except (Exception, SystemExit) as error:  # a module that exits may not end the program that asked for another
            what = f"{type(error).__name__}: {error}"
            _BROKEN[entry.name] = what
            warnings.warn(f"fxfuse: pattern pack {entry.name!r} ({entry.value}) cannot be loaded: {what}", stacklevel=2)
            continue
        for page in pages:
            for value in vars(page).values():
                if isinstance(value, Pattern):
                    found.setdefault(f"{entry.name}::{value.name}", value)
    return found


def names() -> list[str]:
    """The bare names of all patterns, for messages."""
    return sorted({p.name for p in all_patterns().values()})


def defaults() -> tuple[Pattern, ...]:
    """The patterns that are active where the user names none: those that the standard library declares."""
    from fxfuse_patterns import DEFAULTS

    known = all_patterns()
    return tuple(known[full] for full in (f"fxfuse::{name}" for name in DEFAULTS) if full in known)


def is_first_of_its_name(pattern: Pattern) -> bool:
    """Whether a bare name means this pattern: it is the first that a pack has, or no pack has the name."""
    return next((p for p in all_patterns().values() if p.name == pattern.name), pattern) is pattern


def qualified(pattern: Pattern) -> str:
    """``pack::name``, or the bare name of a pattern that belongs to no pack."""
    return next((name for name, p in all_patterns().items() if p is pattern), pattern.name)


def lookup(name: str, key: str) -> Pattern:
    """The pattern of this name, ``pack::name`` where two packs share one.

    Raises:
        OptionError: no such pattern, or an ambiguous name.
    """
    known = all_patterns()
    if name in known:
        return known[name]
    same = [full for full in known if full.split("::", 1)[1] == name]
    if len(same) == 1:
        return known[same[0]]
    if same:
        raise OptionError(f"{key}: pattern {name!r} is in several packs; name one of {same}.")
    raise OptionError(f"{key}: " + unknown("pattern", name, names()))
