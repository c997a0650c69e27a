"""`Lazy`: a function given as ``"module:attribute"``, imported when it is first needed."""

from __future__ import annotations

import functools
import importlib
import re
from dataclasses import dataclass
from typing import Any

from fxfuse.errors import PatternError, first_line

_FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class Lazy:
    """What a kernel of this path does; calling it imports the module first.

    Raises:
        PatternError: the path is not of the form ``package.module:attribute``.
    """

    path: str

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not _FORM.fullmatch(self.path):
            raise PatternError(f"an implementation is given as 'package.module:attribute'; given {self.path!r}.")

    @property
    def module(self) -> str:
        return self.path.partition(":")[0]

    def load(self) -> Any:
        """The object itself.

        Raises:
            PatternError: it cannot be imported, or is nothing that can be called.
        """
        return _load(self.path)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.load()(*args, **kwargs)


@functools.cache
def _load(path: str) -> Any:
    name, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever its module raises
        raise PatternError(f"{path!r} cannot be imported: {first_line(error)}") from error
    if not callable(found):
        raise PatternError(f"{path!r} is a {type(found).__name__}; a function is needed.")
    return found
