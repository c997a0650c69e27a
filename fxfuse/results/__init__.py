"""What was measured, on which machine and at which shapes: records, their files, and the look-up of the nearest one.

Knows nothing of patterns and kernels but their names. Files that ship with fxfuse lie in this folder, as JSON; what was
measured on this machine lies in the user's cache (``FXFUSE_CACHE_DIR``).
"""

from fxfuse.results.record import LEFT_ALONE, Arm, Entry, Shape, Versions, compiler
from fxfuse.results.store import Results, current, folder, reset, save

__all__ = [
    "LEFT_ALONE",
    "Arm",
    "Entry",
    "Results",
    "Shape",
    "Versions",
    "compiler",
    "current",
    "folder",
    "reset",
    "save",
]
