"""Kernels: implementations of a pattern, with what they require. Importing this loads no kernel and no Triton."""

from fxfuse.kernels.registry import Kernel, Requirements, SiteFacts, candidates, choose, kernel, kernels_for

__all__ = ["Kernel", "Requirements", "SiteFacts", "candidates", "choose", "kernel", "kernels_for"]
