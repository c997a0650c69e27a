"""Kernels: implementations of a pattern, with what they require. Importing this loads no kernel and no Triton."""

from fxfuse.kernels.choice import Loss, candidates, choose, fastest, granted, named, why_none
from fxfuse.kernels.facts import SiteFacts, facts_of
from fxfuse.kernels.lazy import Lazy
from fxfuse.kernels.registry import REFERENCE, Kernel, kernel, kernels_for, reference
from fxfuse.kernels.requirements import Requirements

__all__ = [
    "REFERENCE",
    "Kernel",
    "Lazy",
    "Loss",
    "Requirements",
    "SiteFacts",
    "candidates",
    "choose",
    "facts_of",
    "fastest",
    "granted",
    "kernel",
    "kernels_for",
    "named",
    "reference",
    "why_none",
]
