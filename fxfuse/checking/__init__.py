"""Checking patterns: that each is found in all its spellings and in no mutant, and that its kernels compute it."""

from fxfuse.checking.examples import Captured, Example, examples
from fxfuse.checking.failures import CheckError, Failure
from fxfuse.checking.run import Result, check_pattern

__all__ = ["Captured", "CheckError", "Example", "Failure", "Result", "check_pattern", "examples"]
