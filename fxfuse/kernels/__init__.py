"""Kernels: implementations of a pattern, with what they require. Importing this loads no kernel and no Triton."""

from fxfuse.kernels.registry import (
    REFERENCE,
    Kernel,
    Requirements,
    SiteFacts,
    candidates,
    choose,
    kernel,
    kernels_for,
    named,
    reference,
    why_none,
)

__all__ = [
    "REFERENCE",
    "Kernel",
    "Requirements",
    "SiteFacts",
    "candidates",
    "choose",
    "kernel",
    "kernels_for",
    "named",
    "reference",
    "why_none",
]
