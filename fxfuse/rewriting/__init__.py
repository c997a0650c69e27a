"""The only code that edits an FX graph: a copy of the captured one."""

from fxfuse.rewriting.copying import copy_graph_module
from fxfuse.rewriting.editor import Editor, RewriteError

__all__ = ["Editor", "RewriteError", "copy_graph_module"]
