"""Other people's kernels, unchanged: layers of transformers' KernelConfig and of `kernels`, functions of Liger."""

from fxfuse.adapters.kernelconfig import from_kernelconfig
from fxfuse.adapters.layers import from_hub_layer
from fxfuse.adapters.liger import from_liger

__all__ = ["from_hub_layer", "from_kernelconfig", "from_liger"]
