"""Derived parameters: tensors computed from model parameters, kept current, without a second copy where possible."""

from fxfuse.params.budget import Budget
from fxfuse.params.derived import COPIES_ARE_WATCHED, Derived, DerivedInputs, copies, refresh, unwatchable
from fxfuse.params.layouts import chunk, experts, pad, permute
from fxfuse.params.packing import pack, panels
from fxfuse.params.scaling import fold, scale
from fxfuse.params.share import NotShareable, restore, share
from fxfuse.params.transforms import Transform, cast, stack, transpose

__all__ = [
    "COPIES_ARE_WATCHED",
    "Budget",
    "Derived",
    "DerivedInputs",
    "NotShareable",
    "Transform",
    "cast",
    "chunk",
    "copies",
    "experts",
    "fold",
    "pack",
    "pad",
    "panels",
    "permute",
    "refresh",
    "restore",
    "scale",
    "share",
    "stack",
    "transpose",
    "unwatchable",
]
