"""Derived parameters: tensors computed from model parameters, kept current, without a second copy where possible."""

from fxfuse.params.derived import Derived, DerivedInputs, refresh
from fxfuse.params.share import NotShareable, restore, share
from fxfuse.params.transforms import Transform, cast, stack, transpose

__all__ = [
    "Derived",
    "DerivedInputs",
    "NotShareable",
    "Transform",
    "cast",
    "refresh",
    "restore",
    "share",
    "stack",
    "transpose",
]
