"""Module paths: globs over them, and absolute ones for paths that Dynamo gives relative to a frame."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence


@functools.cache
def _compiled(glob: str) -> re.Pattern[str]:
    wild = {"**": ".*", "*": r"[^.]*"}
    pieces = [wild.get(piece) or re.escape(piece) for piece in re.split(r"(\*\*|\*)", glob)]
    return re.compile("".join(pieces) + r"(\..*)?")


def hits(glob: str, path: str) -> bool:
    """Whether the glob names this module or one that contains it: ``*`` is one segment, ``**`` any number."""
    return _compiled(glob.removeprefix("!")).fullmatch(path) is not None


@functools.cache
def _capturing(glob: str) -> re.Pattern[str]:
    wild = {"**": "(.*)", "*": r"([^.]*)"}
    return re.compile("".join(wild.get(piece) or re.escape(piece) for piece in re.split(r"(\*\*|\*)", glob)))


def binding(glob: str, path: str) -> tuple[str, ...] | None:
    """What the wildcards stand for where the glob names exactly this module; None where it does not."""
    hit = _capturing(glob).fullmatch(path)
    return hit.groups() if hit is not None else None


def filled(glob: str, values: Sequence[str]) -> str:
    """The glob with its wildcards replaced, in order."""
    rest = iter(values)
    return re.sub(r"\*\*|\*", lambda _: next(rest), glob)


def selected(modules: Sequence[str], globs: Sequence[str]) -> bool:
    """Whether a site is wanted: one of its modules is hit by a glob, none by one that begins with ``!``."""
    wanted = [g for g in globs if not g.startswith("!")]
    if any(hits(g, m) for g in globs if g.startswith("!") for m in modules):
        return False
    return not wanted or any(hits(g, m) for g in wanted for m in modules)


def absolute(module: str, known: Sequence[tuple[str, Sequence[str]]]) -> str:
    """``module`` with the prefix that its parameters' full paths have and their relative ones lack.

    Args:
        known: a parameter's path in the graph with its full paths in the model (several where it is tied).
    """
    for relative, full in known:
        if relative in full:
            return module
        longer = sorted((f for f in full if f.endswith("." + relative)), key=len)
        if longer:
            prefix = longer[0][: -len(relative) - 1]
            return f"{prefix}.{module}" if module else prefix
    return module
