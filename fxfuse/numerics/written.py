"""What a script defines, without running the script: the statements that a pattern and its kernel are made of."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from fxfuse.errors import OptionError, listed

_CALLS = "kernel"
"""What registers a function that is defined without a decorator: ``fxfuse.kernel(pattern, ...)(function)``."""


def definitions(file: str, names: Iterable[str]) -> list[str]:
    """The statements of a script that define these names, and what those are made of, in the script's order.

    Args:
        names: of functions, which their decorators may make patterns or kernels.

    Raises:
        OptionError: a name is not defined at the top level of the file, or only under ``if __name__ == "__main__"``.
    """
    wanted = list(names)
    source = Path(file).read_text(encoding="utf-8")
    statements = [s for s in ast.parse(source).body if not _is_main(s)]
    bound = [set(_bound(s)) for s in statements]
    missing = [name for name in wanted if not any(name in b for b in bound)]
    if missing:
        raise OptionError(
            f"{listed(missing)} is not defined at the top level of {file}, so that a repro cannot have it without "
            "running the script. Move it there, or to a module of its own that the script imports."
        )
    needed: set[int] = set()
    pending = [i for i, s in enumerate(statements) if _belongs(s, set(wanted)) or not bound[i].isdisjoint(wanted)]
    while pending:
        at = pending.pop()
        if at in needed:
            continue
        needed.add(at)
        used = {n.id for n in ast.walk(statements[at]) if isinstance(n, ast.Name)}
        pending += [i for i, b in enumerate(bound) if i not in needed and ("*" in b or not b.isdisjoint(used))]
    lines = source.splitlines()
    found = [statements[i] for i in sorted(needed)]
    return ["\n".join(lines[_first(s) - 1 : s.end_lineno]) for s in found if not _is_future(s)]


def has_future(file: str) -> bool:
    """Whether the script postpones its annotations, which is said at the head of a file."""
    return any(_is_future(s) for s in ast.parse(Path(file).read_text(encoding="utf-8")).body)


def _is_future(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__"


def _is_main(statement: ast.stmt) -> bool:
    """``if __name__ == "__main__":``"""
    return isinstance(statement, ast.If) and any(
        isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(statement.test)
    )


def _first(statement: ast.stmt) -> int:
    decorators = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(d.lineno for d in decorators)])


def _bound(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement of the top level binds there."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def _belongs(statement: ast.stmt, wanted: set[str]) -> bool:
    """Whether it adds to one of these: ``@pattern.constraint``, or a call that registers a kernel."""
    if isinstance(statement, ast.FunctionDef):
        heads = [d.func if isinstance(d, ast.Call) else d for d in statement.decorator_list]
        owners = [h.value for h in heads if isinstance(h, ast.Attribute)]
        return any(isinstance(owner, ast.Name) and owner.id in wanted for owner in owners)
    if not isinstance(statement, ast.Expr):
        return False
    names = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
    words = names | {n.attr for n in ast.walk(statement) if isinstance(n, ast.Attribute)}
    return _CALLS in words and not names.isdisjoint(wanted)
