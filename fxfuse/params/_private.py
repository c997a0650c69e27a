"""The private torch names that `fxfuse.params` needs; they move to `fxfuse.compat` with the rest."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch._C import DisableTorchFunction as no_torch_function
from torch._C import _len_torch_dispatch_stack, _storage_Use_Count
from torch._C._functorch import is_functorch_wrapped_tensor

__all__ = ["dispatch_mode_active", "is_functorch_wrapped_tensor", "no_torch_function", "storage_holders"]


def dispatch_mode_active() -> bool:
    """Whether a TorchDispatchMode (fake tensors, functionalization, a counter) would see what torch runs now."""
    return bool(_len_torch_dispatch_stack())


def _count(tensor: Tensor) -> int:
    # The use count has each tensor on the storage, and the Python storage object once however many names it has:
    # those names are in its reference count.
    storage = tensor.untyped_storage()
    return _storage_Use_Count(storage._cdata) + sys.getrefcount(storage)


_ALONE = _count(torch.nn.Parameter(torch.empty(1)))


def storage_holders(tensor: Tensor) -> int:
    """How many others hold the tensor's storage: other tensors, NumPy arrays on it, Python storage objects."""
    return _count(tensor) - _ALONE
