"""The only code that edits an FX graph: a copy of the captured one, which may then take its place."""

from fxfuse.rewriting.dialect import Dialect, dialect_of
from fxfuse.rewriting.editor import Editor
from fxfuse.rewriting.errors import RewriteError
from fxfuse.rewriting.examples import key_of

__all__ = ["Dialect", "Editor", "RewriteError", "dialect_of", "key_of"]
