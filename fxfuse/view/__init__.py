"""The canonical view: one graph, read as canonical ops, whatever the model's spelling. It never edits the graph."""

from fxfuse.view import aten
from fxfuse.view.leaves import Leaf, LeafKind
from fxfuse.view.values import DtypeOf, Value
from fxfuse.view.view import View

__all__ = ["DtypeOf", "Leaf", "LeafKind", "Value", "View", "aten"]
