"""Its kernels, one for each device."""

import os

import torch
import torch.nn.functional as F

import fxfuse
from fxfuse_activations.gated_product import gated_product

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@fxfuse.kernel(gated_product, name="on_cpu", device="cpu", backward="autograd", default=True)
def on_cpu(gate, up, *, act):
    """In fp32 and rounded once; Inductor makes one loop of it."""
    wide = gate.float()
    a = F.silu(wide) if act == "silu" else F.gelu(wide, approximate="tanh")
    return (a * up.float()).to(up.dtype)


fxfuse.kernel(
    gated_product,
    name="on_cuda",
    device=("cuda", "cpu") if INTERPRETED else "cuda",
    capability=None if INTERPRETED else (8, 0),
    dtypes=(torch.bfloat16, torch.float16, torch.float32),
    default=True,
    implementation="fxfuse_activations.triton.gated_product:gated_product",
)
