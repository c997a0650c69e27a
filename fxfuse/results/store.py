"""The files that measurements are kept in: read once, written as a whole, and safe where several processes write."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from fxfuse.errors import FxfuseError, first_line, warn_once
from fxfuse.machine import Machine
from fxfuse.results.nearest import nearest
from fxfuse.results.record import Entry, Shape, Versions

SCHEMA = 1
"""Version of the files' form; one of another version is not read."""

SHIPPED = os.path.dirname(os.path.abspath(__file__))
_SUFFIX = ".json"

Signature = tuple[tuple[str, int, int, int], ...]


class ResultsError(FxfuseError, OSError):
    """The user's results cannot be read or written."""


def folder() -> str:
    """Where this user's results are: below ``FXFUSE_CACHE_DIR``, else below the XDG cache directory."""
    own = os.environ.get("FXFUSE_CACHE_DIR")
    if own:
        return os.path.join(os.path.abspath(os.path.expanduser(own)), "results")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "fxfuse", "results")


@dataclass(frozen=True)
class Results:
    """What is known at one moment. ``entries``: the user's own first; ``problems``: files that cannot be read."""

    entries: tuple[Entry, ...] = ()
    problems: tuple[str, ...] = ()
    _found: dict[tuple[Shape, Machine], Entry | None] = field(default_factory=dict, compare=False, repr=False)

    def find(self, shape: Shape, machine: Machine) -> Entry | None:
        """The entry that says most about this shape on this machine, of those that hold for what is installed."""
        key = (shape, machine)
        if key not in self._found:
            self._found[key] = nearest(self.usable, shape, machine)
        return self._found[key]

    @cached_property
    def usable(self) -> list[Entry]:
        """Those entries that were measured with the versions that are installed."""
        here = Versions.here()
        return [entry for entry in self.entries if entry.versions.hold_for(here)]

    def arms(self, pattern: str) -> frozenset[str]:
        """The kernels of a pattern (``pack::name``) that were measured somewhere."""
        return frozenset(arm for entry in self.usable if entry.shape.pattern == pattern for arm in entry.arms)

    def digest(self, patterns: Collection[str]) -> str:
        """What decides for these patterns (``pack::name``), as a hash: for keys of compile caches."""
        texts = sorted(
            json.dumps(entry.to_json(), sort_keys=True) for entry in self.usable if entry.shape.pattern in patterns
        )
        return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:24]


_LOCK = threading.Lock()
_READ: dict[str, tuple[Signature, Results]] = {}


def current() -> Results:
    """What is known now. Files are read again only when one of them changed."""
    place = folder()
    signature = _signature((place, SHIPPED))
    with _LOCK:
        known = _READ.get(place)
        if known is not None and known[0] == signature:
            return known[1]
    made = _read([path for path, *_ in signature])
    for problem in made.problems:
        warn_once(f"fxfuse does not use a results file: {problem}")
    with _LOCK:
        _READ.clear()
        _READ[place] = signature, made
    return made


def save(entries: Iterable[Entry]) -> list[str]:
    """Add entries to this user's results, in place of those of the same key. Returns the files.

    Raises:
        ResultsError: the folder cannot be written.
    """
    by_file: dict[str, list[Entry]] = {}
    for entry in entries:
        by_file.setdefault(file_of(entry.machine), []).append(entry)
    for path, new in by_file.items():
        fresh = {entry.key: entry for entry in new}
        _change(path, lambda had, fresh=fresh: [*(e for e in had if e.key not in fresh), *fresh.values()])  # type: ignore[misc]  # a default binds
    return list(by_file)


def reset(pattern: str | None = None) -> int:
    """Forget this user's results, all or those of one pattern; how many there were. Shipped ones stay.

    Raises:
        ResultsError: the folder cannot be written.
    """
    gone = 0

    def keep(had: list[Entry]) -> list[Entry]:
        nonlocal gone
        kept = [e for e in had if pattern is not None and pattern not in _names(e)]
        gone += len(had) - len(kept)
        return kept

    for path, *_ in _signature((folder(),)):
        _change(path, keep)
    return gone


def file_of(machine: Machine) -> str:
    """The file of this user's results on a machine."""
    words = [machine.name, machine.arch] if machine.device != "cpu" else [machine.name, f"{machine.units} threads"]
    name = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
    return os.path.join(folder(), f"{name or machine.device}{_SUFFIX}")


def _names(entry: Entry) -> tuple[str, str]:
    return entry.shape.pattern, entry.shape.pattern.rpartition("::")[2]


def _signature(places: Sequence[str]) -> Signature:
    """The results files in these folders, with what changes when they do."""
    found: list[tuple[str, int, int, int]] = []
    for place in places:
        with contextlib.suppress(OSError), os.scandir(place) as items:
            files = [(item.path, item.stat()) for item in items if item.name.endswith(_SUFFIX)]
            found += sorted((path, stat.st_mtime_ns, stat.st_size, stat.st_ino) for path, stat in files)
    return tuple(found)


def _read(paths: Iterable[str]) -> Results:
    entries: list[Entry] = []
    problems: list[str] = []
    for path in paths:
        try:
            entries += _entries_of(path)
        except (OSError, ValueError) as error:
            problems.append(f"{path}: {first_line(error)}")
    return Results(tuple(entries), tuple(problems))


def _entries_of(path: str) -> list[Entry]:
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except FileNotFoundError:
        return []
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("entries"), list):
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"a results file of schema {SCHEMA} is needed; found {found!r}")
    return [Entry.from_json(entry) for entry in data["entries"]]


def _change(path: str, change: Callable[[list[Entry]], list[Entry]]) -> None:
    """Replace a file by what ``change`` makes of its entries, while no other process does; one without is removed."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with _locked(path + ".lock"):
            try:
                had = _entries_of(path)
            except ValueError:  # of another version, or no results at all: it is of use to nobody
                had = []
            left = change(had)
            if left:
                _write(path, left)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(path)
    except OSError as error:
        raise ResultsError(f"results cannot be kept in {path!r}: {first_line(error)}") from error


def _write(path: str, entries: Sequence[Entry]) -> None:
    data = {"schema": SCHEMA, "entries": [entry.to_json() for entry in entries]}
    with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(path), delete=False, encoding="utf-8") as file:
        json.dump(data, file, indent=1)
        file.write("\n")
    os.replace(file.name, path)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
