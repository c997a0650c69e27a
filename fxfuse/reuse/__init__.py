"""Compile one layer, not thirty: repeated stretches of a graph are compiled once and called several times."""

from fxfuse.reuse.compiling import compile_graph, foresee
from fxfuse.reuse.running import Compiler

__all__ = ["Compiler", "compile_graph", "foresee"]
