"""Which patterns are meant: those of an installed pack, one of them, or those of a file."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib import metadata

from fxfuse import library
from fxfuse.authoring import Pattern
from fxfuse.errors import FxfuseError, unknown


class UnknownTarget(FxfuseError, ValueError):
    """No pack, file or pattern of this name; the command ends with the exit code of a usage error."""

    exit_code = 2


def patterns_of(target: str, names: list[str] | None = None) -> dict[str, Pattern]:
    """The patterns that are meant, by the names they are reported under.

    Args:
        target: a pack's entry point name, ``pack::pattern``, or the path of a .py file.
        names: only these of them.

    Raises:
        UnknownTarget: there is none; the message names the valid ones.
    """
    if target.endswith(".py") or os.sep in target:
        found = _of_file(target)
    elif "::" in target:
        known = library.all_patterns()
        if target not in known:
            raise UnknownTarget(unknown("pattern", target, known))
        found = {target: known[target]}
    else:
        found = _of_pack(target)
    for name in names or ():
        if name not in {p.name for p in found.values()}:
            raise UnknownTarget(unknown(f"pattern of {target},", name, [p.name for p in found.values()]))
    return {full: p for full, p in found.items() if not names or p.name in names}


def _of_pack(name: str) -> dict[str, Pattern]:
    entries = {entry.name: entry for entry in metadata.entry_points(group=library.GROUP)}
    if name not in entries:
        raise UnknownTarget(unknown("pack", name, entries) + " A file is given by its path, ending in .py.")
    found = {full: p for full, p in library.all_patterns().items() if full.startswith(f"{name}::")}
    if not found:
        try:
            entries[name].load()
        except Exception as error:
            raise UnknownTarget(f"pack {name!r} ({entries[name].value}) cannot be loaded: {error}") from error
        raise UnknownTarget(f"pack {name!r} ({entries[name].value}) holds no pattern.")
    return found


def _of_file(path: str) -> dict[str, Pattern]:
    if not os.path.isfile(path):
        raise UnknownTarget(
            f"there is no file {path!r}. Valid: an existing .py file, or the name of an installed pack."
        )
    name = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UnknownTarget(f"{path!r} is no Python file; give one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # so that what it defines can be found by its module's name
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))  # as for `python file.py`
    try:
        spec.loader.exec_module(module)
    except FxfuseError:
        raise
    except Exception as error:
        raise UnknownTarget(f"{path!r} cannot be loaded: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
        if before is not None:
            sys.modules[name] = before
    found = {value.name: value for value in vars(module).values() if isinstance(value, Pattern)}
    if not found:
        raise UnknownTarget(f"{path!r} defines no pattern; one is made by @fxfuse.pattern(...).")
    own = {n: p for n, p in found.items() if p.function.__module__ == name}
    return own or found  # a file of kernels imports the patterns that they are for
