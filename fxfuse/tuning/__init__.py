"""Tuning: every kernel of a pattern timed beside the site left alone, and kept where the choice of kernels looks."""

from fxfuse.tuning.run import tune, tune_pattern
from fxfuse.tuning.timing import Bench

__all__ = ["Bench", "tune", "tune_pattern"]
