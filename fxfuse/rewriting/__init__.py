"""The only code that edits an FX graph: a copy of the captured one."""

from fxfuse.rewriting.editor import Editor, RewriteError

__all__ = ["Editor", "RewriteError"]
