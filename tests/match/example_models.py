"""Small forwards for the examples of docs/reasons.md: each is refused for one reason; the one below it is not.

``m`` holds the parameters of the headline pattern, ``norm`` and ``mlp`` are Llama's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from support import HIDDEN, mlp
from support import rms as norm


def site(m: Any, x: Any) -> Any:
    return mlp(m, norm(m, x))


def clamped_product(m: Any, x: Any) -> Any:
    h = norm(m, x)
    product = F.silu(F.linear(h, m.gate)) * F.linear(h, m.up)
    return F.linear(product.clamp(max=1.0), m.down)


def gate_with_bias(m: Any, x: Any) -> Any:
    return F.silu(F.linear(x, m.gate, m.gate_bias)) * F.linear(x, m.up)


def gate_without_bias(m: Any, x: Any) -> Any:
    return F.silu(F.linear(x, m.gate)) * F.linear(x, m.up)


def one_projection(m: Any, x: Any) -> Any:
    h = torch.tanh(x).exp()
    return F.linear(h, m.gate)


def two_projections(m: Any, x: Any) -> Any:
    h = torch.tanh(x).exp()
    return F.linear(h, m.gate), F.linear(h, m.up)


def statistics(x: Any) -> Any:
    h = x.float()
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)


def scaled_by_two_plus_weight(m: Any, x: Any) -> Any:
    h = statistics(x) * (2.0 + m.weight)
    return mlp(m, h)


def scaled_by_one_plus_weight(m: Any, x: Any) -> Any:
    h = statistics(x) * (1.0 + m.weight)
    return mlp(m, h)


def statistics_in_bf16(m: Any, x: Any) -> Any:
    variance = x.pow(2).mean(-1, keepdim=True)
    h = m.weight * (x * torch.rsqrt(variance + 1e-6))
    return mlp(m, h)


def one_up_row(m: Any, x: Any) -> Any:
    h = norm(m, x)
    up = F.linear(h, m.one_row)
    return F.linear(F.silu(F.linear(h, m.gate)) * up, m.down)


def statistics_of_another_tensor(m: Any, x: Any) -> Any:
    variance = (x + 1).pow(2).mean(-1, keepdim=True)
    h = m.weight * (x * torch.rsqrt(variance + 1e-6))
    return mlp(m, h)


def with_mish(m: Any, x: Any) -> Any:
    h = norm(m, x)
    activated = F.mish(F.linear(h, m.gate))
    return F.linear(activated * F.linear(h, m.up), m.down)


def with_gelu(m: Any, x: Any) -> Any:
    h = norm(m, x)
    activated = F.gelu(F.linear(h, m.gate))
    return F.linear(activated * F.linear(h, m.up), m.down)


def norm_without_weight(m: Any, x: Any) -> Any:
    h = statistics(x)
    return mlp(m, h)


def norm_with_weight(m: Any, x: Any) -> Any:
    h = m.weight * statistics(x)
    return mlp(m, h)


def routed(m: Any, x: Any) -> Any:
    h = norm(m, x)
    scores = F.linear(h, m.router)
    return mlp(m, h), scores


def routed_by_the_input(m: Any, x: Any) -> Any:
    h = norm(m, x)
    scores = F.linear(x, m.router)
    return mlp(m, h), scores


def norm_returned(m: Any, x: Any) -> Any:
    h = norm(m, x)
    return mlp(m, h), h


def written_between(m: Any, x: Any) -> Any:
    h = norm(m, x)
    activated = F.silu(F.linear(h, m.gate))
    h.add_(1)
    return F.linear(activated * F.linear(h, m.up), m.down)


def written_after(m: Any, x: Any) -> Any:
    y = site(m, x)
    y.add_(1)
    return y


def two_in_a_row(m: Any, x: Any) -> Any:
    first = F.silu(F.linear(x, m.gate))
    second = first[..., :HIDDEN] + x
    return first, torch.tanh(F.linear(second, m.gate))


def two_side_by_side(m: Any, x: Any) -> Any:
    first = F.silu(F.linear(x, m.gate))
    second = x.exp()[..., :HIDDEN] + x
    return first, torch.tanh(F.linear(second, m.gate))


def switched_inside(m: Any, x: Any) -> Any:
    h = norm(m, x)
    activated = F.silu(F.linear(h, m.gate))
    with torch.set_grad_enabled(False):
        up = F.linear(h, m.up)
    return F.linear(activated * up, m.down)


def switched_after(m: Any, x: Any) -> Any:
    y = site(m, x)
    with torch.set_grad_enabled(False):
        return y + x.sin()


def doubled_gate(m: Any, x: Any) -> Any:
    h = norm(m, x)
    gate = m.gate * 2
    return F.linear(F.silu(F.linear(h, gate)) * F.linear(h, m.up), m.down)


def bias_on_gate_alone(m: Any, x: Any) -> Any:
    h = norm(m, x)
    gate, up = F.linear(h, m.gate, m.gate_bias), F.linear(h, m.up)
    return F.linear(F.silu(gate) * up, m.down)


def bias_on_both(m: Any, x: Any) -> Any:
    h = norm(m, x)
    gate, up = F.linear(h, m.gate, m.gate_bias), F.linear(h, m.up, m.up_bias)
    return F.linear(F.silu(gate) * up, m.down)


def bounded(m: Any, x: Any) -> Any:
    return torch.tanh(F.linear(x, m.gate)).exp()


def trained(m: Any, x: Any) -> Any:
    return torch.tanh(F.linear(x, m.trained)).exp()
