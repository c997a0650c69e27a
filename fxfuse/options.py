"""Options: what `options={...}` and `Backend(...)` accept, checked at once and in full before anything happens."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fxfuse import library
from fxfuse.authoring import Pattern
from fxfuse.compat import inductor_options, mode_names
from fxfuse.errors import OptionError, unknown
from fxfuse.kernels import REFERENCE, kernels_for

PLACEMENTS = ("auto", "separate", "share", "copy", "inline")
INNER = ("inductor", "aot_eager", "eager")
ON_MISS = ("silent", "warn", "error")
ON_ERROR = ("fallback", "raise")
REUSE = ("auto", "off")


@dataclass(frozen=True)
class Options:
    """The options of one compile; hashable, so that equal ones share Dynamo's cache entries.

    ``patterns`` are the active ones; ``named`` those that the user named, which are rewritten wherever they match.
    """

    patterns: tuple[Pattern, ...]
    named: frozenset[str] = frozenset()
    paths: tuple[str, ...] = ()
    kernels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    expect: tuple[tuple[str, int], ...] = ()
    expect_rewritten: tuple[tuple[str, int], ...] = ()
    on_miss: str = "warn"
    on_error: str = "fallback"
    weights: str | tuple[tuple[str, str], ...] = "auto"
    extra_memory: float = 0.0
    inner: str = "inductor"
    inner_options: tuple[tuple[str, Any], ...] = ()
    mode: str | None = None
    report_dir: str | None = None
    verify: bool = False
    reuse: str = "auto"

    def kernels_named(self, pattern: str) -> tuple[str, ...]:
        """The kernels that the user named for a pattern, in order of preference; ``("off",)``; or none."""
        return dict(self.kernels).get(pattern, ())

    def weights_for(self, pattern: str) -> str:
        return self.weights if isinstance(self.weights, str) else dict(self.weights).get(pattern, "auto")

    def describe(self) -> dict[str, Any]:
        """The options as plain data, for reports and cache keys."""
        out: dict[str, Any] = {"patterns": [library.qualified(p) for p in self.patterns]}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name in {"patterns", "named"} or value == f.default:
                continue
            pairs = isinstance(value, tuple) and value and isinstance(value[0], tuple)
            out[f.name] = {k: _plain(v) for k, v in value} if pairs else _plain(value)
        return out


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


VALID = (
    "patterns",
    "add",
    "drop",
    *(f.name for f in dataclasses.fields(Options) if f.name not in {"patterns", "named"}),
)


def parse(options: Mapping[str, Any] | None = None, *, mode: str | None = None, **keywords: Any) -> Options:
    """Check a dict of options (and keywords) into :class:`Options`.

    Raises:
        OptionError: an unknown key, name, value or mode; the message lists the valid ones.
    """
    if options is not None and not isinstance(options, Mapping):
        raise OptionError(f"options is a dict; given {type(options).__name__}.")
    given = {**(options or {}), **keywords}
    for key in given:
        if key not in VALID:
            raise OptionError(unknown("option", key, VALID))
    if mode is not None:
        if "mode" in given:
            raise OptionError("mode is given twice: as `mode=` and in options.")
        given["mode"] = mode
    out: dict[str, Any] = {}
    out["patterns"], out["named"] = _patterns(given)
    active = {p.name for p in out["patterns"]}
    for key, read in _READERS.items():
        if key in given:
            out[key] = read(key, given[key])
    for name, wished in out.get("kernels", ()):
        _known_pattern("kernels", name)
        known = [*kernels_for(name), REFERENCE]
        if "off" in wished and len(wished) > 1:
            raise OptionError(f"kernels[{name!r}]: 'off' stands alone; given {list(wished)!r}.")
        for kernel in wished:
            if kernel not in known and wished != ("off",):
                raise OptionError(f"kernels[{name!r}]: " + unknown("kernel", kernel, [*known, "off"]))
        if name in active and wished != ("off",):
            out["named"] = out["named"] | {name}
    for key in ("expect", "expect_rewritten"):
        for name, _ in out.get(key, ()):
            _known_pattern(key, name)
            if name not in active:
                raise OptionError(f"{key} counts {name!r}, which is not among the active patterns: {sorted(active)}.")
    if out.get("mode") is not None and out.get("inner", "inductor") != "inductor":
        raise OptionError(f"mode={out['mode']!r} is Inductor's; it cannot go with inner={out['inner']!r}.")
    return Options(**out)


def _patterns(given: Mapping[str, Any]) -> tuple[tuple[Pattern, ...], frozenset[str]]:
    named: set[str] = set()
    if "patterns" in given and given["patterns"] is not None:
        if "add" in given or "drop" in given:
            raise OptionError("patterns is the exact list; it cannot go with add or drop.")
        chosen = [_pattern("patterns", item) for item in _list("patterns", given["patterns"])]
        named = {p.name for p in chosen}
    else:
        chosen = list(library.defaults())
        for item in _list("add", given.get("add", ())):
            added = _pattern("add", item)
            named.add(added.name)
            if added not in chosen:
                chosen.append(added)
        for item in _list("drop", given.get("drop", ())):
            dropped = _pattern("drop", item)
            if dropped not in chosen:
                raise OptionError(f"drop names {dropped.name!r}, which is not active: {[p.name for p in chosen]}.")
            chosen.remove(dropped)
    names = [p.name for p in chosen]
    twice = {n for n in names if names.count(n) > 1}
    if twice:
        raise OptionError(f"pattern {sorted(twice)[0]!r} is active twice; name each once.")
    return tuple(chosen), frozenset(named)


def _pattern(key: str, item: Any) -> Pattern:
    if isinstance(item, Pattern):
        return item
    if not isinstance(item, str):
        raise OptionError(f"{key} holds pattern names and Pattern objects; given {item!r}.")
    return library.lookup(item, key)


def _known_pattern(key: str, name: str) -> None:
    if name not in {p.name for p in library.all_patterns().values()} and not kernels_for(name):
        raise OptionError(f"{key}: " + unknown("pattern", name, library.names()))


def _bare(given: Mapping[Any, Any]) -> dict[Any, Any]:
    """The mapping under bare pattern names, where ``pack::name`` was given."""
    known = library.all_patterns()
    return {known[key].name if key in known else key: value for key, value in given.items()}


def _list(key: str, value: Any) -> Sequence[Any]:
    if isinstance(value, (str, Pattern)) or not isinstance(value, Sequence | set | frozenset):
        raise OptionError(f"{key} is a list; given {value!r}.")
    return list(value)


def _one_of(values: Sequence[str]) -> Callable[[str, Any], Any]:
    def read(key: str, value: Any) -> Any:
        if not isinstance(value, str) or value not in values:
            raise OptionError(unknown(f"value of {key}:", value, values))
        return value

    return read


def _counts(key: str, value: Any) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, Mapping):
        raise OptionError(f"{key} is a dict of pattern name to count; given {value!r}.")
    value = _bare(value)
    for name, count in value.items():
        if not isinstance(name, str) or not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise OptionError(f"{key} maps pattern names to counts of at least 0; given {name!r}: {count!r}.")
    return tuple(sorted(value.items()))


def _kernels(key: str, value: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """A name, ``"off"``, or a list of names: the first that can run a site is taken."""
    wished = {}
    for name, names in _bare(value).items() if isinstance(value, Mapping) else ((None, None),):
        names = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, list | tuple) else ()
        if not isinstance(name, str) or not names or not all(isinstance(n, str) for n in names):
            raise OptionError(
                f"{key} is a dict of pattern name to kernel name, list of names, or 'off'; given {value!r}."
            )
        wished[name] = names
    return tuple(sorted(wished.items()))


def _weights(key: str, value: Any) -> str | tuple[tuple[str, str], ...]:
    if isinstance(value, Mapping):
        value = _bare(value)
        for name, placement in value.items():
            _known_pattern(key, name)
            _one_of(PLACEMENTS)(f"{key}[{name!r}]", placement)
        return tuple(sorted(value.items()))
    return str(_one_of(PLACEMENTS)(key, value))


def _paths(key: str, value: Any) -> tuple[str, ...]:
    globs = [value] if isinstance(value, str) else _list(key, value)
    if not all(isinstance(g, str) and g for g in globs):
        raise OptionError(f"{key} holds globs over module paths, such as 'model.layers.*.mlp'; given {value!r}.")
    return tuple(globs)


def _fraction(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise OptionError(f"{key} is a fraction of the fused parameters' bytes, at least 0; given {value!r}.")
    return float(value)


def _inner_options(key: str, value: Any) -> tuple[tuple[str, Any], ...]:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise OptionError(f"{key} is a dict of Inductor options; given {value!r}.")
    for name in value:
        if name.replace("-", "_") not in inductor_options():
            near = difflib.get_close_matches(name, inductor_options(), n=5, cutoff=0.3)
            raise OptionError(f"{key}: " + unknown("Inductor option, of several hundred,", name, near))
    return tuple(sorted(value.items()))


def _directory(key: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str | os.PathLike):
        raise OptionError(f"{key} is a directory; given {value!r}.")
    return None if value is None else os.fspath(value)


def _switch(key: str, value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise OptionError(f"{key} is True or False; given {value!r}.")
    return bool(value)


def _mode(key: str, value: Any) -> str | None:
    return None if value is None else str(_one_of(mode_names())(key, value))


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "paths": _paths,
    "kernels": _kernels,
    "expect": _counts,
    "expect_rewritten": _counts,
    "on_miss": _one_of(ON_MISS),
    "on_error": _one_of(ON_ERROR),
    "weights": _weights,
    "extra_memory": _fraction,
    "inner": _one_of(INNER),
    "inner_options": _inner_options,
    "mode": _mode,
    "report_dir": _directory,
    "verify": _switch,
    "reuse": _one_of(REUSE),
}
