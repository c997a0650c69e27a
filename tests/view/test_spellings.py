"""Every spelling of an op is one canonical op with bound arguments, as Dynamo captures it, in fp32 and in bf16."""

from __future__ import annotations

import functools

import pytest
import torch
from support import canonical, canonicals, value_of

# canonical form -> spellings, the first being the plainest; all of one row compute the same values.
EITHER: dict[str, list[str]] = {
    "add(x, y)": [
        "x + y",
        "torch.add(x, y)",
        "x.add(y)",
        "torch.add(input=x, other=y)",
        "x.add(other=y)",
        "torch.add(x, y, alpha=1)",
    ],
    "add(x, other=0.5)": ["x + 0.5", "torch.add(x, 0.5)", "x.add(0.5)"],
    "add(input=0.5, x)": ["0.5 + x"],
    "add(x, y, alpha=2)": ["torch.add(x, y, alpha=2)", "x.add(y, alpha=2)"],
    "sub(x, y)": ["x - y", "torch.sub(x, y)", "x.sub(y)", "torch.subtract(x, y)", "x.subtract(y)"],
    "mul(x, y)": [
        "x * y",
        "torch.mul(x, y)",
        "x.mul(y)",
        "torch.multiply(x, y)",
        "x.multiply(y)",
        "torch.mul(input=x, other=y)",
        "x.mul(other=y)",
    ],
    "mul(x, other=2)": ["x * 2", "x.mul(2)", "torch.mul(x, 2)"],
    "div(x, y)": [
        "x / y",
        "torch.div(x, y)",
        "x.div(y)",
        "torch.divide(x, y)",
        "torch.true_divide(x, y)",
        "x.true_divide(y)",
        "torch.div(x, y, rounding_mode=None)",
    ],
    "div(x, y, rounding_mode='floor')": ["torch.div(x, y, rounding_mode='floor')", "x.div(y, rounding_mode='floor')"],
    "neg(x)": ["-x", "torch.neg(x)", "x.neg()", "torch.negative(x)", "x.negative()"],
    "pow(x, exponent=3)": ["x ** 3", "x.pow(3)", "torch.pow(x, 3)", "torch.pow(input=x, exponent=3)"],
    "sqrt(v)": ["torch.sqrt(v)", "v.sqrt()"],
    "rsqrt(v)": ["torch.rsqrt(v)", "v.rsqrt()", "torch.rsqrt(input=v)"],
    "reciprocal(v)": ["torch.reciprocal(v)", "v.reciprocal()"],
    "mean(x, dim=-1, keepdim=True)": [
        "x.mean(-1, keepdim=True)",
        "x.mean(-1, True)",
        "x.mean(dim=-1, keepdim=True)",
        "x.mean((-1,), keepdim=True)",
        "x.mean([-1], keepdim=True)",
        "x.mean(2, keepdim=True)",
        "torch.mean(x, -1, True)",
        "x.mean([2], True)",
        "torch.mean(x, dim=-1, keepdim=True)",
        "torch.mean(input=x, dim=[-1], keepdim=True)",
        "torch.mean(x, axis=-1, keepdims=True)",
        "x.mean(-1, keepdim=True, dtype=None)",
    ],
    "mean(x, dim=-1)": ["x.mean(-1)", "x.mean(-1, False)", "torch.mean(x, dim=2, keepdim=False)"],
    "mean(x, dim=-2, keepdim=True)": ["x.mean(-2, keepdim=True)", "x.mean(1, keepdim=True)"],
    "mean(x, dim=(-2, -1))": ["x.mean((-1, -2))", "torch.mean(x, [-1, -2])"],
    "mean(x)": ["x.mean()", "torch.mean(x)", "x.mean(dim=None)"],
    "sum(x, dim=-1, keepdim=True)": ["x.sum(-1, keepdim=True)", "torch.sum(x, -1, True)", "x.sum(2, True)"],
    "sigmoid(x)": ["torch.sigmoid(x)", "x.sigmoid()", "F.sigmoid(x)", "torch.special.expit(x)", "nn.Sigmoid()(x)"],
    "tanh(x)": ["torch.tanh(x)", "x.tanh()", "F.tanh(x)"],
    "exp(x)": ["torch.exp(x)", "x.exp()"],
    "silu(x)": ["F.silu(x)", "F.silu(x, False)", "F.silu(input=x)", "F.silu(x, inplace=False)", "nn.SiLU()(x)"],
    "gelu(x)": ["F.gelu(x)", "F.gelu(x, approximate='none')", "nn.GELU()(x)"],
    "gelu(x, approximate='tanh')": ["F.gelu(x, approximate='tanh')", "nn.GELU(approximate='tanh')(x)"],
    "relu(x)": ["F.relu(x)", "torch.relu(x)", "x.relu()", "F.relu(x, False)", "nn.ReLU()(x)"],
    "linear(x, M, w)": ["F.linear(x, M, w)", "F.linear(x, M, bias=w)", "F.linear(input=x, weight=M, bias=w)"],
    "transpose(x, dim0=-2, dim1=-1)": [
        "x.transpose(1, 2)",
        "torch.transpose(x, 1, 2)",
        "x.swapaxes(1, 2)",
        "x.transpose(dim0=1, dim1=2)",
        "x.transpose(2, -2)",
        "x.permute(0, 2, 1)",
        "x.movedim(1, 2)",
        "x.swapdims(-1, 1)",
        "x.mT",
    ],
    "transpose(W, dim0=-2, dim1=-1)": ["W.t()", "torch.t(W)", "W.T", "W.mT", "W.transpose(0, 1)", "W.permute(1, 0)"],
    "permute(x, dims=(-2, -1, -3))": [
        "x.permute(1, 2, 0)",
        "x.permute((1, 2, 0))",
        "torch.permute(x, (1, 2, 0))",
        "x.permute([1, 2, 0])",
        "x.permute(dims=(1, 2, 0))",
        "x.permute(-2, -1, -3)",
        "x.movedim(0, -1)",
        "torch.moveaxis(x, 0, 2)",
        "x.movedim((0, 1), (2, 0))",
    ],
    "rows(x)": [
        "x.reshape(6, 8)",
        "x.view(6, 8)",
        "x.reshape((6, 8))",
        "torch.reshape(x, (6, 8))",
        "x.view([6, 8])",
    ],
    "unsqueeze(w, dim=-2)": ["w.unsqueeze(-2)", "torch.unsqueeze(w, -2)", "w.unsqueeze(dim=-2)"],
    "dropout(x)": ["F.dropout(x)", "F.dropout(x, 0.5, True)", "F.dropout(x, p=0.5, training=True)"],
    "part(x, dim=-1, index=0, of=2)": [
        "x.chunk(2, -1)[0]",
        "torch.chunk(x, 2, dim=-1)[0]",
        "x.chunk(2, dim=2)[0]",
        "x.chunk(chunks=2, dim=-1)[0]",
        "x.split(4, -1)[0]",
        "torch.split(x, 4, dim=-1)[0]",
        "x.split([4, 4], dim=-1)[0]",
        "x.split((4, 4), -1)[0]",
        "x.split(split_size=4, dim=-1)[0]",
        "torch.split(x, split_size_or_sections=4, dim=-1)[0]",
        "x[..., :4]",
        "x[..., 0:4]",
        "x[:, :, :4]",
        "x[..., :-4]",
        "x[..., 0:4:1]",
    ],
    "part(x, dim=-1, index=1, of=2)": [
        "x.chunk(2, -1)[1]",
        "x.chunk(2, -1)[-1]",
        "x.split(4, -1)[1]",
        "x[..., 4:]",
        "x[:, :, 4:]",
        "x[..., -4:]",
        "x[..., 4:8]",
    ],
    "part(x, dim=-1, index=2, of=4)": ["x.chunk(4, -1)[2]", "x.split(2, dim=-1)[2]", "x[..., 4:6]"],
    "sub(input=1, x)": ["1 - x", "torch.rsub(x, 1)", "torch.sub(1, x)"],
    "neg(y)": ["-y", "y * -1", "-1.0 * y", "torch.mul(y, -1)"],
    "mul(x, other=0.125)": ["x * 0.125", "x / 8", "x / 8.0", "torch.div(x, 8)", "x.div(8)"],
    "div(x, other=7)": ["x / 7", "torch.div(x, 7)"],
    "abs(x)": ["x.abs()", "torch.abs(x)", "abs(x)"],
    "floor_divide(x, other=2)": ["x // 2", "torch.floor_divide(x, 2)", "x.floor_divide(2)"],
    "log(v)": ["torch.log(v)", "v.log()"],
    "erf(x)": ["torch.erf(x)", "x.erf()", "torch.special.erf(x)"],
    "sin(x)": ["x.sin()", "torch.sin(x)"],
    "cos(x)": ["x.cos()", "torch.cos(x)"],
    "clamp(x, min=-1.0, max=1.0)": [
        "x.clamp(-1.0, 1.0)",
        "torch.clamp(x, min=-1.0, max=1.0)",
        "torch.clip(x, -1.0, 1.0)",
        "x.clamp(max=1.0, min=-1.0)",
    ],
    "clamp(x, min=0)": ["x.clamp(0)", "x.clamp(min=0)", "torch.clamp(x, min=0)", "x.clamp_min(0)"],
    "clamp(x, max=2.0)": ["x.clamp(max=2.0)", "torch.clamp_max(x, 2.0)"],
    "maximum(x, y)": ["torch.maximum(x, y)", "x.maximum(y)"],
    "minimum(x, y)": ["torch.minimum(x, y)", "x.minimum(y)"],
    "gt(x, other=0)": ["x > 0", "torch.gt(x, 0)", "x.gt(0)", "torch.greater(x, 0)"],
    "le(x, y)": ["x <= y", "x.le(y)", "torch.less_equal(x, y)"],
    "eq(x, y)": ["x == y", "x.eq(y)", "torch.eq(x, y)"],
    "bitwise_and(gt(x, other=0), gt(y, other=0))": [
        "(x > 0) & (y > 0)",
        "torch.bitwise_and(x > 0, y > 0)",
        "(x > 0).bitwise_and(y > 0)",
    ],
    "bitwise_not(gt(x, other=0))": ["~(x > 0)", "torch.bitwise_not(x > 0)"],
    "where(gt(x, other=0), x, y)": [
        "torch.where(x > 0, x, y)",
        "x.where(x > 0, y)",
        "torch.where(condition=x > 0, input=x, other=y)",
    ],
    "where(gt(y, other=0), input=-10000.0, x)": [
        "torch.where(y > 0, -1e4, x)",
        "x.masked_fill(y > 0, -1e4)",
        "torch.masked_fill(x, y > 0, -1e4)",
        "x.masked_fill(mask=y > 0, value=-1e4)",
    ],
    "amax(x, dim=-1, keepdim=True)": ["x.amax(-1, keepdim=True)", "torch.amax(x, 2, True)", "x.amax([-1], True)"],
    "var(x, dim=-1, correction=0, keepdim=True)": [
        "x.var(-1, unbiased=False, keepdim=True)",
        "x.var(-1, correction=0, keepdim=True)",
        "torch.var(x, dim=2, unbiased=False, keepdim=True)",
        "x.var(-1, False, True)",
    ],
    "var(x, dim=-1)": ["x.var(-1)", "torch.var(x, -1)", "x.var(-1, unbiased=True)", "x.var(-1, correction=1)"],
    "vector_norm(x, dim=-1)": [
        "x.norm(dim=-1)",
        "torch.norm(x, dim=-1)",
        "torch.norm(x, p=2, dim=2)",
        "torch.linalg.vector_norm(x, dim=-1)",
        "x.norm(2, -1)",
    ],
    "cumsum(x, dim=-1)": ["x.cumsum(-1)", "torch.cumsum(x, dim=2)"],
    "softplus(x)": ["F.softplus(x)", "F.softplus(x, 1, 20)", "nn.Softplus()(x)", "F.softplus(x, beta=1)"],
    "mish(x)": ["F.mish(x)", "nn.Mish()(x)"],
    "leaky_relu(x, negative_slope=0.2)": ["F.leaky_relu(x, 0.2)", "nn.LeakyReLU(0.2)(x)"],
    "elu(x)": ["F.elu(x)", "nn.ELU()(x)", "F.elu(x, 1.0)"],
    "square(relu(x))": ["F.relu(x).square()", "F.relu(x) ** 2", "torch.square(torch.relu(x))", "x.relu().pow(2)"],
    "mul(tanh(mul(x, other=0.5)), other=2.0)": ["torch.tanh(x / 2.0) * 2.0", "(x * 0.5).tanh().mul(2.0)"],
    "mul(x, sigmoid(mul(x, other=1.702)))": ["x * torch.sigmoid(x * 1.702)", "x * (x * 1.702).sigmoid()"],
    "matmul(x, transpose(y, dim0=-2, dim1=-1))": [
        "x @ y.transpose(1, 2)",
        "torch.bmm(x, y.mT)",
        "torch.matmul(x, y.transpose(-1, -2))",
        "x.bmm(y.permute(0, 2, 1))",
        "torch.einsum('bqd,bkd->bqk', x, y)",
        "torch.einsum('bid, bjd -> bij', [x, y])",
    ],
    "matmul(x, C)": ["x @ C", "torch.bmm(x, C)", "torch.einsum('bij,bjk->bik', x, C)"],
    "matmul(x, M)": [
        "x @ M",
        "torch.matmul(x, M)",
        "x.matmul(M)",
        "torch.matmul(input=x, other=M)",
        "torch.einsum('bsh,hn->bsn', x, M)",
        "torch.einsum('...h,hn->...n', x, M)",
    ],
    "linear(x, W)": [
        "F.linear(x, W)",
        "F.linear(x, W, None)",
        "F.linear(x, W, bias=None)",
        "F.linear(input=x, weight=W)",
        "torch._C._nn.linear(x, W)",
        "torch.einsum('...d,nd->...n', x, W)",
        "torch.einsum('bsd,nd->bsn', x, W)",
    ],
    "linear(x, transpose(M, dim0=-2, dim1=-1), w)": [
        "torch.addmm(w, x.view(-1, 8), M).view(2, 3, 8)",
        "torch.addmm(w, x.reshape(6, 8), M).view(x.size()[:-1] + (8,))",
        "torch.addmm(w, x.flatten(0, 1), mat2=M).unflatten(0, (2, 3))",
    ],
    "scaled_dot_product_attention(x, y, y)": [
        "F.scaled_dot_product_attention(x, y, y)",
        "F.scaled_dot_product_attention(query=x, key=y, value=y, attn_mask=None, dropout_p=0.0, is_causal=False)",
    ],
    "scaled_dot_product_attention(x, y, y, is_causal=True, scale=0.3)": [
        "F.scaled_dot_product_attention(x, y, y, is_causal=True, scale=0.3)",
        "F.scaled_dot_product_attention(x, y, y, None, 0.0, True, scale=0.3)",
    ],
    "embedding(argmax(x, dim=-1), W)": ["F.embedding(x.argmax(-1), W)", "F.embedding(torch.argmax(x, dim=2), W)"],
    "cat(tensors=(x, y), dim=-1)": [
        "torch.cat((x, y), -1)",
        "torch.cat([x, y], dim=2)",
        "torch.concat([x, y], dim=-1)",
        "torch.concatenate((x, y), axis=-1)",
        "torch.cat(tensors=[x, y], dim=-1)",
    ],
    "cat(tensors=(x, y), dim=-2)": ["torch.cat((x, y), 1)", "torch.hstack((x, y))"],
    "cat(tensors=(x, y), dim=-3)": ["torch.cat((x, y))", "torch.cat([x, y], 0)"],
    "stack(tensors=(x, y), dim=-1)": ["torch.stack((x, y), -1)", "torch.stack([x, y], dim=3)"],
    "stack(tensors=(x, y), dim=-4)": ["torch.stack((x, y))", "torch.stack([x, y], 0)"],
    "cat(tensors=(neg(part(x, dim=-1, index=1, of=2)), part(x, dim=-1, index=0, of=2)), dim=-1)": [
        "torch.cat((-x[..., 4:], x[..., :4]), -1)",
        "torch.cat((-x.chunk(2, -1)[1], x.chunk(2, -1)[0]), dim=-1)",
        "torch.cat([-x.narrow(-1, 4, 4), x.narrow(2, 0, 4)], dim=-1)",
        "torch.cat((-x.split(4, -1)[1], x.unflatten(-1, (2, 4))[..., 0, :]), dim=-1)",
    ],
    "x": [
        "x",
        "x * 1",
        "x / 1.0",
        "x.permute(0, 1, 2)",
        "x.transpose(1, -2)",
        "x[:, :, None].reshape(2, 3, 8)",
        "x.view(6, 8).view(2, 3, 8)",
        "x.unflatten(-1, (2, 4)).flatten(-2)",
        "x.squeeze(1)",
        "x.expand_as(y)",
        "x.view_as(y)",
        "x.contiguous()",
        "x.clone()",
        "torch.clone(x)",
        "x.view(2, 3, 8)",
        "x.reshape(x.shape)",
        "x.view(x.size(0), -1, 8)",
        "x.expand(2, 3, 8)",
        "x.expand(-1, -1, -1)",
        "x[...]",
        "x[:]",
        "x[:, :, :]",
        "x[:, 0:]",
        "F.dropout(x, 0.5, False)",
        "F.dropout(x, p=0.1, training=False)",
        "F.dropout(x, 0.0)",
        "torch.dropout(x, 0.5, False)",
        "nn.Dropout(0.1).eval()(x)",
        "x.to(x.dtype)",
        "x.to(y)",
        "x.type_as(y)",
        "x.to(y.dtype)",
        "x.to(dtype=y.dtype)",
        "x.type(x.dtype)",
        "x.to(x.device)",
        "x.to('cpu')",
        "x.to(x.device, x.dtype)",
        "x.to(device=x.device, dtype=x.dtype)",
        "x.to(x.dtype, copy=True)",
    ],
    "w": ["w.flatten()", "torch.flatten(w)", "w.view(-1)", "w.reshape(8)"],
}

FP32: dict[str, list[str]] = {
    "softmax(x, dim=-1)": [
        "F.softmax(x, -1)",
        "x.softmax(-1)",
        "torch.softmax(x, -1)",
        "F.softmax(x, dim=-1)",
        "x.softmax(dim=2)",
        "torch.softmax(x, -1, dtype=torch.float32)",
        "F.softmax(x, dim=-1, dtype=x.dtype)",
        "nn.Softmax(dim=-1)(x)",
        "torch.special.softmax(x, -1)",
    ],
    "x": [
        "x",
        "x.float()",
        "x.to(torch.float32)",
        "x.to(dtype=torch.float32)",
        "x.type(torch.float32)",
        "x.to(torch.float)",
        "x.float().float()",
        "x.double().dtype and x.float()",
    ],
    "cast(x, dtype=bf16)": [
        "x.bfloat16()",
        "x.to(torch.bfloat16)",
        "x.to(dtype=torch.bfloat16)",
        "x.type(torch.bfloat16)",
        "x.to(y.bfloat16())",
        "x.type_as(y.bfloat16())",
        "x.to('cpu', torch.bfloat16)",
    ],
    "cast(x, dtype=f16)": ["x.half()", "x.to(torch.float16)", "x.to(torch.half)"],
    "cast(x, dtype=f64)": ["x.double()", "x.to(torch.float64)"],
}

BF16: dict[str, list[str]] = {
    "x": ["x", "x.bfloat16()", "x.to(torch.bfloat16)", "x.type(torch.bfloat16)"],
    "cast(x, dtype=f32)": [
        "x.float()",
        "x.to(torch.float32)",
        "x.to(dtype=torch.float32)",
        "x.type(torch.float32)",
        "x.to(y.float())",
        "x.type_as(y.float())",
        "x.to(torch.float32, non_blocking=True)",
    ],
    "cast(cast(x, dtype=f32), dtype=bf16)": ["x.float().to(x.dtype)", "x.float().type_as(x)", "x.float().to(x)"],
    "softmax(cast(x, dtype=f32), dim=-1)": [
        "F.softmax(x, dim=-1, dtype=torch.float32)",
        "x.softmax(-1, dtype=torch.float32)",
        "torch.softmax(x.float(), -1)",
    ],
    "cast(softmax(cast(x, dtype=f32), dim=-1), dtype=bf16)": [
        "F.softmax(x, -1)",
        "x.softmax(2)",
        "F.softmax(x, dim=-1, dtype=torch.float32).to(x.dtype)",
        "F.softmax(x.float(), dim=-1).type_as(x)",
    ],
    "square(cast(x, dtype=f32))": ["x.float().pow(2)", "x.to(torch.float32) ** 2"],
}


TABLES = ((torch.float32, EITHER), (torch.bfloat16, EITHER), (torch.float32, FP32), (torch.bfloat16, BF16))
ROWS = [
    pytest.param(form, spelling, spellings[0], dtype, id=f"{spelling}-{str(dtype)[6:]}")
    for dtype, table in TABLES
    for form, spellings in table.items()
    for spelling in spellings
]


@functools.cache
def _forms(dtype: torch.dtype) -> dict[str, str]:
    """All of a dtype's spellings, captured as one graph: hundreds of small captures take a minute."""
    return canonicals([row.values[1] for row in ROWS if row.values[3] is dtype], dtype)


@pytest.mark.parametrize(("form", "spelling", "plainest", "dtype"), ROWS)
def test_spelling(form: str, spelling: str, plainest: str, dtype: torch.dtype) -> None:
    assert _forms(dtype)[spelling] == form
    if "dropout" in form:  # which is random
        return
    got, want = value_of(spelling, dtype), value_of(plainest, dtype)
    if "einsum" in spelling:  # a sum of products in another order, in fp32
        torch.testing.assert_close(got, want, rtol=1e-6 if dtype is torch.float32 else 0.0, atol=1e-6)
    else:
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("expression", "form"),
    [
        ("torch.add(x, y, out=torch.empty_like(x))", "?add"),
        ("F.silu(x.clone(), True)", "silu(clone(x), inplace=True)"),
        ("torch.logcumsumexp(x, -1)", "?logcumsumexp"),
        ("x.cumsum(-1)", "cumsum(x, dim=-1)"),
        ("x.to(torch.float32, memory_format=torch.contiguous_format, copy=True)", "x"),
    ],
)
def test_what_the_table_does_not_have_stays_apart(expression: str, form: str) -> None:
    """An argument that matters is kept; a call that the table cannot bind is opaque, not guessed."""
    assert canonical(expression) == form


def test_a_view_of_another_dtype_is_no_identity() -> None:
    """``x.view(torch.float16)`` reads the bits anew: its shape is unchanged, its values are not."""
    assert canonical("x.view(torch.float16)", torch.bfloat16) != "x"
