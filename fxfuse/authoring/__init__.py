"""What a pattern author writes: captures, sizes, one_of and its kind, and the decorator that traces a reference."""

from fxfuse.authoring.captures import Capture, Input, Param, Scalar
from fxfuse.authoring.markers import keep, many, one_of, ordered
from fxfuse.authoring.pattern import Pattern, pattern
from fxfuse.authoring.region import Region, region
from fxfuse.authoring.sizes import Dim

__all__ = [
    "Capture",
    "Dim",
    "Input",
    "Param",
    "Pattern",
    "Region",
    "Scalar",
    "keep",
    "many",
    "one_of",
    "ordered",
    "pattern",
    "region",
]
