"""Expressions that look like an operation and are another: what a matcher that compares too little would confuse.

Most give a tensor of the right shape where sizes are equal, so nothing but their meaning tells them apart.
"""

from __future__ import annotations

MISTAKES: dict[str, tuple[str, ...]] = {
    "add": (
        "torch.add({0}, {1}, alpha=2)", "{0} - {1}", "{0} + {1} + 1", "torch.maximum({0}, {1})", "{0} + {0}",
        "torch.sub({0}, {1}, alpha=-2)",
    ),
    "sub": (
        "{1} - {0}", "torch.sub({0}, {1}, alpha=2)", "torch.rsub({0}, {1})",
    ),
    "mul": (
        "{0} * {1}.flip(-1)", "{0} + {1}", "{0} * {1} * {1}", "{0} * {1}.transpose(-1, -2)", "{0} * {0}",
        "{0} * {1}.detach()", "{0} * {1}.abs()", "{0} @ {1}", "({0} * {1}).bfloat16().to({0}.dtype)",
    ),
    "truediv": (
        "{1} / {0}", 'torch.div({0}, {1}, rounding_mode="floor")', "{0} // {1}", "{0} * {1}",
    ),
    "square": (
        "{0}.pow(3)", "{0}.abs()", "{0} * {0}.flip(-1)", "{0} ** 1", "{0}.pow(2.5)", "{0} * {0}.transpose(-1, -2)",
        "torch.pow(2, {0})", "{0} * ({0} + 0.5)", "{0} + {0}", "{0} ** {0}", "{0} ** True",
    ),
    "rsqrt": (
        "torch.sqrt({0})", "1 / {0}", "2 / torch.sqrt({0})", "{0} ** -0.25", "{0} ** 0.5",
        'torch.div(1, torch.sqrt({0}), rounding_mode="floor")', "torch.sqrt({0}) / 1", "torch.rsqrt({0}) * 2",
        "{0} ** -1", "torch.sqrt({0}).bfloat16().float().reciprocal()", "torch.rsqrt({0}.bfloat16())",
    ),
    "mean": (
        "{0}.mean(0, keepdim=True)", "{0}.mean(-2, keepdim=True)", "{0}.mean(-1)", "{0}.sum(-1, keepdim=True)",
        "{0}.sum(-1, keepdim=True) / ({n} + 1)", "{0}.mean()", "{0}.mean((-1, -2), keepdim=True)",
        "{0}.sum(-1, keepdim=True) / {0}.shape[0]", "{0}.mean(-1, keepdim=True, dtype=torch.float64)",
        "{0}.amax(-1, keepdim=True)", "{0}.sum(-2, keepdim=True) / {n}", "{0}.var(-1, keepdim=True)",
        'torch.div({0}.sum(-1, keepdim=True), {n}, rounding_mode="trunc")', "{0}.mean(1, keepdim=True)",
        "{0}.sum(-1, keepdim=True) / {0}.numel()", "{0}.sum(keepdim=True, dim=0) / {0}.shape[0]",
    ),
    "linear": (
        "{0} @ {1}", "F.linear({0}, {1}.t())", "F.linear({0}.float(), {1}.float()).to({0}.dtype)",
        "{0}.flip(-1) @ {1}.t()", "F.linear({0}, {1} * 2)", "F.linear({0}, {1}.clone())", "{0} @ {1}.permute(0, 1)",
        "{0} @ {1}.transpose(0, 0)", "{0} @ {1}.t().t()", "F.linear({1}, {0})", "{0} @ {1}.T.contiguous().T",
        "F.linear({0}, {1}.detach())", "{0}.transpose(-1, -2) @ {1}.t()", "{1} @ {0}.transpose(-1, -2)",
        "({0} @ {1}.t()).flip(-1)", "F.linear({0}, {1}, {1}[0])",
        "torch.baddbmm({0}, {0}, {1}.t().expand({0}.shape[0], -1, -1))", 'torch.einsum("...i,io->...o", {0}, {1})',
        'torch.einsum("bij,kj->ibk", {0}, {1})', "torch.bmm({0}, {1}.t().expand({0}.shape[0], -1, -1))",
        "{0} @ {1}[None].transpose(-1, -2)",
    ),
    "linear_bias": (
        "torch.addmm({2}, {0}, {1}.t(), alpha=2)", "torch.addmm({2}, {0}, {1}.t(), beta=0.5)",
        "F.linear({0}, {1}) * {2}", "torch.addmm({2}, {0}, {1})", "F.linear({0}, {1}, {2}.flip(-1))",
        "F.linear({0}, {1})", "F.linear({0}, {1}) - {2}", "F.linear({0}, {1}) + {2}[0]",
    ),
    "cast": (
        "{0}.to(torch.bfloat16)", "{0}.to(torch.float16)", "{0}.double()", "{0}.to(torch.bfloat16).to({1})",
        "{0}.to(torch.float16).to({1})", "{0}.to({1}).clone()", "{0}.to({1}) * 1.5", "{0}.float()",
        "{0}.int().to({1})",
    ),
    "silu": (
        "{0} * torch.sigmoid(1.702 * {0})", "torch.sigmoid({0})", "{0} + torch.sigmoid({0})",
        "F.silu({0}, inplace=True)", "F.silu({0}, True)", "F.mish({0})", "F.hardswish({0})",
        "{0} * torch.sigmoid({0}.flip(-1))", "{0} * torch.sigmoid(torch.full({0}.shape, 0.5))",
        "{0} * torch.sigmoid({0}) * torch.sigmoid({0})", "{0}.float() * torch.sigmoid({0}.float())",
        "({0} * torch.sigmoid({0})).to({0}.dtype)",
    ),
    "gelu": (
        'F.gelu({0}, approximate="tanh")', "{0} * torch.sigmoid(1.702 * {0})", "F.silu({0})", "F.elu({0})",
    ),
    "gelu_tanh": (
        "F.gelu({0})", "0.5 * {0} * (1.0 + torch.tanh(0.7978845608 * ({0} + 0.044 * {0} ** 3)))",
        "0.5 * {0} * (1.0 + torch.tanh(0.7978845608 * ({0} + 0.044715 * {0} ** 2)))",
        "0.5 * {0} * (2.0 + torch.tanh(0.7978845608 * ({0} + 0.044715 * {0} ** 3)))",
    ),
    "relu": (
        "F.relu({0}, inplace=True)", "{0}.relu_()", "{0}.clamp(min=0.5)", "{0}.clamp(max=0)", "F.relu6({0})",
        "F.leaky_relu({0})", "F.relu({0}, True)", "{0}.abs()", "{0}.clamp(0, 1)",
    ),
    "sigmoid": (
        "F.hardsigmoid({0})", "torch.tanh({0})", "torch.sigmoid({0} * 2)",
    ),
    "tanh": (
        "torch.sigmoid({0})", "F.hardtanh({0})", "torch.tanh({0} * 2)",
    ),
    "softmax": (
        "F.softmax({0}, dim=0)",
        "(lambda e: e / e.sum(-2, keepdim=True))(torch.exp({0} - {0}.amax(-1, keepdim=True)))",
        "F.softmax({0}, dim=-2)", "F.log_softmax({0}, dim=-1)", "F.softmax({0}, dim=-1, dtype=torch.float32)",
        "F.softmin({0}, dim=-1)", "F.softmax({0}, dim=-1, dtype=torch.float32).to({0}.dtype)", "F.softmax({0}, dim=1)",
    ),
    "first_half": (
        "{0}.chunk(2, 0)[0]", "{0}.chunk(3, -1)[0]", "{0}[..., ::2]", "{0}[..., 1::2]", "{0}.chunk(2, -2)[0]",
        "{0}[..., 1 : 1 + {0}.shape[-1] // 2]", "{0}.split(1, -1)[0]", "{0}.chunk(4, -1)[1]",
        "{0}.split([{0}.shape[-1] // 2 + 1, {0}.shape[-1] - {0}.shape[-1] // 2 - 1], -1)[0]", "{0}.chunk(2, -1)[1]",
        "{0}[: {0}.shape[-1] // 2]",
    ),
    "second_half": (
        "{0}.chunk(2, 0)[1]", "{0}.chunk(3, -1)[1]", "{0}[..., 1::2]", "{0}.chunk(2, -1)[0]", "{0}.chunk(4, -1)[2]",
        "{0}[..., {0}.shape[-1] // 2 - 1 : -1]", "{0}.chunk(2, -2)[1]", "{0}.chunk(2, -1)[1].flip(-1)",
    ),
    "transpose_last": (
        "{0}.transpose(0, 1)", "{0}.transpose(0, -1)", "{0}.reshape({0}.shape)", "{0}.transpose(1, 2)",
        "{0}.transpose(-1, -1)", "{0}.transpose(-1, -3)",
    ),
    "split_heads": (
        "{0}.unflatten(-1, (2, -1)).transpose(-1, -2)", "{0}.reshape(-1, {0}.shape[0], 2)",
        "{0}.unflatten(-1, (-1, 2)).flip(-1)", "{0}.view(-1, {0}.shape[-1] // 2, 2)",
    ),
    "where": (
        "torch.where({0}, torch.scalar_tensor({1}, dtype=torch.bfloat16), {2})", "torch.where({0}, {2}, {1})",
        "{2}.masked_fill(~{0}, {1})", "torch.where({0}, 2 * {1}, {2})",
    ),
    "repeat": (
        "{0}.repeat(1, 2, 1)", "{0}[:, None].expand(-1, 2, -1, -1).reshape({0}.shape[0], -1, {0}.shape[-1])",
        "{0}.repeat_interleave(2, dim=0)", "torch.cat(({0}, {0}), -2)",
    ),
    "slice_from_2": (
        "{0}[..., 2:3]", "{0}[..., :-2]", "{0}[..., 1:-1]", "{0}[..., -1:]", "{0}.roll(-2, -1)[..., 2:]",
    ),
    "layer_norm": (
        "({0} - {0}.mean(-1, keepdim=True)) * torch.rsqrt({0}.var(-1, keepdim=True) + {3}) * {1} + {2}",
        "F.layer_norm({0}, {0}.shape[-2:], None, None, {3}) * {1} + {2}", "F.layer_norm({0}, ({n},), {1}, {2})",
        "F.layer_norm({0}, ({n},), {2}, {1}, {3})", "F.rms_norm({0}, ({n},), {1}, {3}) + {2}",
        "({0} - {0}.mean(-2, keepdim=True)) * torch.rsqrt({0}.var(-1, keepdim=True, unbiased=False) "
        "+ {3}) * {1} + {2}",
    ),
    "rms_norm": (
        "F.rms_norm({0}, {0}.shape[-2:], None, {2}) * {1}", "F.rms_norm({0}, ({n},), None, {2})",
        "F.layer_norm({0}, ({n},), {1}, None, {2})", "F.rms_norm({0}, ({n},), {1}, 2 * {2})",
        "F.rms_norm({0}, ({n},), {1})", "F.normalize({0}, dim=-1) * {1}",
    ),
    "cat_last": (
        "torch.cat(({1}, {0}), dim=-1)", "torch.cat(({0}, {1}), dim=0)", "torch.cat(({0}, {0}), dim=-1)",
    ),
}  # fmt: skip

IDENTITIES: tuple[str, ...] = (
    "{0}.view({0}.shape)", "{0}.reshape({0}.shape)", "{0}.contiguous()", "{0}.clone()", "{0}.to({0}.dtype)",
    "{0}[...]", "F.dropout({0}, 0.5, False)", "F.dropout({0}, 0.0)", "{0}.expand_as({0})",
    "{0}.transpose(0, 1).transpose(0, 1)", "{0}.flatten().view({0}.shape)", "{0}[:]", "{0}.detach()", "{0} * 1",
    "{0} + 0", "{0}.unsqueeze(0).squeeze(0)", "{0}.view_as({0})", "{0}[None][0]", "{0}.type_as({0})",
    "nn.Identity()({0})", "{0}.float().to({0}.dtype)", "{0}.expand({0}.shape)", "{0}.permute(*range({0}.dim()))",
    "{0}.flatten(-1)", "{0}.requires_grad_(False)",
)  # fmt: skip
"""What leaves the values of a tensor as they are; a matcher may see through some."""

FALSE_IDENTITIES: tuple[str, ...] = (
    "{0}.flip(-1)", "{0}[:1].expand_as({0})", "{0}.transpose(-1, -2)", "{0}.T", "{0}.reshape({0}.shape[::-1])",
    "F.dropout({0}, 0.5, True)", "F.dropout({0}, 0.9)", "{0}.transpose(-1, -2).contiguous()", "{0}.roll(1, -1)",
    "{0}.transpose(0, 1)", "{0}.transpose(0, 1).reshape({0}.shape)", "{0}.to(torch.bfloat16).to({0}.dtype)", "-{0}",
    "{0}[..., :1].expand({0}.shape)", "{0}.half().to({0}.dtype)", "{0}.unsqueeze(0)", "{0} * 0.5", "{0}.mT",
    "{0}.view(-1)", "{0}.squeeze()", "{0}.flatten(0)", "{0}.permute(*range({0}.dim())[::-1])", "{0}[1:]", "{0}[0:1]",
    "{0}[..., 1:]", "{0}.double()", "{0}.to(torch.float16)", "{0}.reshape(-1, {0}.shape[0])", "{0}[::2]", "{0}[[0]]",
    "{0}.view(torch.int16).view({0}.dtype) * 2",
    "{0}.view(torch.float16 if {0}.dtype != torch.float16 else torch.bfloat16)", "{0}.nan_to_num(0.5)",
    "{0}.index_select(0, torch.zeros({0}.shape[0], dtype=torch.long))",
)  # fmt: skip
"""What a careless rule would take for one of them."""

MUTATIONS: tuple[str, ...] = (
    "{0}.mul_(2)", "{0}.add_(1)", "{0} *= 2", "{0}[..., 0] = 1.0", "{0}.view(-1).mul_(2)",
    "{0}.chunk(2, -1)[0].mul_(3)", "torch.mul({0}, 2, out={0})", "F.relu({0}, inplace=True)", "F.hardswish({0}, True)",
    "torch.ops.aten.mul_({0}, 2)", "torch.ops.aten.mul_.Scalar({0}, 2)", "torch._foreach_mul_([{0}], 2.0)",
    "{0}.copy_({0} * 2)", "{0}.zero_()", "{0}.t().add_(1)", "{0}.clamp_(min=0)", "{0}[0].add_(1)", "{0}.data.mul_(2)",
    "{0}.detach().add_(1)", "{0} += 1", "{0}.neg_()", "torch.relu_({0})", "F.dropout({0}, 0.0, True, True).add_(1)",
    "{0}.transpose(-1, -2).mul_(2)", "{0}.to({0}.dtype).mul_(2)", "{0}.float().mul_(2)", "{0}.contiguous().mul_(2)",
    "{0}.unsqueeze(0).add_(1)", "{0}.expand_as({0}).mul_(2)", "{0}.split(1, -1)[0].add_(1)", "{0}.flatten().mul_(2)",
    "{0}.fill_(0.5)", "torch.add({0}, 1, out={0})", "{0}.__imul__(2)", "{0}.__setitem__(0, 1.0)",
    "{0}.masked_fill_({0} > 0, 0.25)", "{0}.select(0, 0).add_(1)", "{0}.unbind(0)[0].mul_(2)",
    "{0}.narrow(-1, 0, 1).add_(1)", "{0}.diagonal().add_(1)", "nn.ReLU(inplace=True)({0})", "{0}.view_as({0}).add_(1)",
    "{0}.squeeze().mul_(2)", "{0}.reshape(-1).mul_(2)", "{0}.movedim(0, -1).mul_(2)",
    "{0}.unflatten(-1, (-1, 1)).add_(1)", "{0}.ravel().add_(1)", "{0}.swapaxes(0, -1).mul_(2)",
)  # fmt: skip
"""Writes in place, straight and through every kind of alias."""
