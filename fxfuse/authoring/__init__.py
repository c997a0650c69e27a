"""What a pattern author writes: captures, one_of, and the decorator that traces a reference function."""

from fxfuse.authoring.captures import Capture, Dim, Input, Param, Scalar
from fxfuse.authoring.pattern import Pattern, pattern
from fxfuse.authoring.trace import one_of

__all__ = ["Capture", "Dim", "Input", "Param", "Pattern", "Scalar", "one_of", "pattern"]
