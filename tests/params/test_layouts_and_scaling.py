"""The transforms beyond stack, cast and transpose: values, shapes, inverses, refusals, and that they trace."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import fxfuse
from fxfuse import cast, chunk, experts, fold, pack, pad, permute, scale, stack, transpose
from fxfuse.compat import FakeTensorMode
from fxfuse.params import DerivedInputs, NotShareable, Transform, restore, share
from fxfuse.params.derived import Derived
from fxfuse.params.packing import packed_in, packed_linear

W, V, S, R = torch.randn(6, 8), torch.randn(6, 8), torch.rand(8) + 0.5, torch.rand(6) + 0.5
CUBE = torch.randn(2, 3, 4)

VALUES: dict[str, tuple[Transform, tuple[Tensor, ...], Callable[..., Tensor]]] = {
    "chunk": (chunk("w", 1), (W,), lambda w: w[3:]),
    "chunk, columns": (chunk("w", 3, 4, dim=1), (W,), lambda w: w[:, 6:]),
    "permute": (permute("w", 2, 0, 1), (CUBE,), lambda w: w.permute(2, 0, 1)),
    "pad": (pad("w", 4), (W,), lambda w: torch.cat([w, w.new_zeros(2, 8)])),
    "pad, columns": (pad("w", 16, dim=1), (W,), lambda w: torch.cat([w, w.new_zeros(6, 8)], 1)),
    "pad, nothing missing": (pad("w", 3), (W,), lambda w: w),
    "experts": (experts("a", "b"), (W, V), lambda a, b: torch.stack([a, b])),
    "scale": (scale("w", 0.3), (W,), lambda w: w * 0.3),
    "scale, rows": (scale("w", "r"), (W, R), lambda w, r: r[:, None] * w),
    "fold": (fold("w", "s"), (W, S), lambda w, s: w * s),
    "fold, offset": (fold("w", "s", offset=True), (W, S), lambda w, s: w * (1 + s)),
    "fold, experts": (fold(experts("a", "b"), "s"), (W, V, S), lambda a, b, s: torch.stack([a * s, b * s])),
    "composed": (
        pad(transpose(fold(stack("a", chunk("b", 0)), "s")), 16),
        (W, V, S),
        lambda a, b, s: torch.cat([(torch.cat([a, b[:3]]) * s).t(), a.new_zeros(8, 9)]),
    ),
}


@pytest.mark.parametrize("what", VALUES)
def test_values_shapes_bytes_and_that_nothing_is_shared_with_a_source(what: str) -> None:
    transform, sources, expected = VALUES[what]
    kept = [source.clone() for source in sources]
    result = transform(*sources)
    torch.testing.assert_close(result, expected(*sources), rtol=1e-6, atol=1e-6)
    assert result.is_contiguous()
    shapes = [source.shape for source in sources]
    assert transform.shape(shapes) == result.shape
    assert transform.bytes(shapes, [torch.float32] * len(sources)) == result.nbytes
    assert all(torch.equal(a, b) for a, b in zip(kept, sources, strict=True)), "a transform is pure"
    assert pickle.loads(pickle.dumps(transform)) == transform
    with FakeTensorMode() as mode:
        assert transform(*map(mode.from_tensor, sources)).shape == result.shape


@pytest.mark.parametrize("what", VALUES)
def test_every_one_traces(what: str) -> None:
    transform, sources, _ = VALUES[what]

    class Root(nn.Module):
        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            return transform(*(a, b, c)[: len(transform.sources)])

    padded = (*sources, *sources[:1] * 3)[:3]
    assert torch.equal(fx.symbolic_trace(Root())(*padded), transform(*sources))


@pytest.mark.parametrize(
    ("transform", "sources"),
    [
        (permute("w", 2, 0, 1), (CUBE,)),
        (pad("w", 4), (W,)),
        (pad("w", 16, dim=1), (W,)),
        (experts("a", "b"), (W, V)),
        (pad(transpose(stack("a", "b")), 32), (W, V)),
    ],
    ids=lambda one: str(one) if isinstance(one, Transform) else "",
)
def test_inverses_give_the_sources_back(transform: Transform, sources: tuple[Tensor, ...]) -> None:
    back = transform.inverse(transform(*sources), [source.shape for source in sources])
    assert all(torch.equal(a, b) for a, b in zip(back, sources, strict=True))


@pytest.mark.parametrize("transform", [chunk("w", 0), scale("w", 0.3), fold("w", "s")], ids=str)
def test_what_loses_information_has_no_inverse_and_says_so(transform: Transform) -> None:
    sources = (W, S)[: len(transform.sources)]
    with pytest.raises(ValueError, match="has no inverse"):
        transform.inverse(transform(*sources), [source.shape for source in sources])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_are_rounded_once(dtype: torch.dtype) -> None:
    w, s = W.to(dtype), S.to(dtype)
    exact = (w.double() * (1 + s.double())).to(dtype)
    assert torch.equal(fold("w", "s", offset=True)(w, s), exact)
    twice = w * (1 + s)
    assert not torch.equal(twice, exact), "this would prove nothing"


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "unequal chunks": (lambda: chunk("w", 0, 4)(W), r"needs a dimension 0 that 4 divides; found shape \(6, 8\) for w"),
    "chunk index": (lambda: chunk("w", 2), "index=2, chunks=2, dim=0; valid are an index below"),
    "permute count": (lambda: permute("w", 1, 0)(CUBE), r"needs 2 dimensions; found shape \(2, 3, 4\)"),
    "permute twice": (lambda: permute("w", 0, 0), r"dimensions \(0, 0\); valid is each of 0, 1, ... once"),
    "pad to nothing": (lambda: pad("w", 0), "multiple=0"),
    "pad dimension": (lambda: pad("w", 4, dim=2)(W), "needs more than 2 dimensions"),
    "experts' shapes": (lambda: experts("a", "b")(W, V[:5]), r"needs one shape; found \(6, 8\), \(5, 8\) for a, b"),
    "experts' dtypes": (lambda: experts("a", "b")(W, V.half()), "needs one dtype; found torch.float32, torch.float16"),
    "scale by infinity": (lambda: scale("w", float("inf")), "valid is a finite number"),
    "scale by rows": (lambda: scale("w", "r")(W, S), r"one number per row; found \(6, 8\) and \(8,\) for w, r"),
    "fold the outputs": (lambda: fold("w", "s")(W, R), r"needs a weight \(..., out, in\) and a scale \(in,\)"),
    "fold integers": (lambda: fold("w", "s")(W.int(), S), "needs float16, bfloat16, float32 or float64; found"),
    "fold float8": (lambda: fold("w", "s")(W.to(torch.float8_e4m3fn), S), "found torch.float8_e4m3fn"),
    "fold by 1": (lambda: fold("w", "s", offset=1), "offset=1; valid are True and False"),  # type: ignore[arg-type]  # is the case
    "pack bf16": (lambda: pack("w")(W.bfloat16()), r"needs a float32 weight \(out, in\) .* found torch.bfloat16"),
    "pack a cube": (lambda: pack("w")(CUBE), r"found torch.float32 \(2, 3, 4\)"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_by_name(what: str) -> None:
    make, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        make()


def test_settings_tell_transforms_apart() -> None:
    different = [
        chunk("w", 0), chunk("w", 1), chunk("w", 0, 3), chunk("w", 0, dim=1), pad("w", 4), pad("w", 8),
        permute("w", 0, 1), permute("w", 1, 0), scale("w", 2.0), scale("w", 3.0), scale("w", "s"), fold("w", "s"),
        fold("w", "s", offset=True), fold("s", "w"), experts("w"), stack("w"), pack("w"),
    ]  # fmt: skip
    assert len(set(different)) == len({str(t) for t in different}) == len(different)


def test_where_each_can_live() -> None:
    assert stack("a", "b").placements == experts("a", "b").placements == {"share", "copy", "inline"}
    assert fold("w", "s").placements == experts(cast("a", torch.half), "b").placements == {"copy", "inline"}
    assert pack(stack("a", "b")).placements == {"copy"}


def test_all_are_public() -> None:
    names = ("stack", "chunk", "transpose", "permute", "fold", "scale", "cast", "pad", "pack", "experts")
    assert all(name in fxfuse.__all__ and callable(getattr(fxfuse, name)) for name in names)


# experts share storage like rows


def test_experts_live_in_one_tensor_and_go_their_own_way_again() -> None:
    parameters = [nn.Parameter(torch.randn(4, 8)) for _ in range(3)]
    before = [p.detach().clone() for p in parameters]
    whole = share(parameters, experts("w[0]", "w[1]", "w[2]"))
    assert whole.shape == (3, 4, 8)
    with torch.no_grad():
        parameters[1].mul_(2)
    assert torch.equal(whole[1], before[1] * 2)
    assert all(p.untyped_storage().nbytes() == 4 * 8 * 4 for p in parameters)
    with pytest.raises(NotShareable, match="already shares storage as part of experts"):
        share(parameters, stack("w[0]", "w[1]", "w[2]"))  # another shape of the same memory
    assert restore(nn.ParameterList(parameters)) == 3


# packed weights


def test_a_packed_weight_computes_the_linear_of_its_values() -> None:
    weight, x, bias = torch.randn(128, 48), torch.randn(2, 5, 48), torch.randn(128)
    handle = pack("w")(weight)
    assert (handle.shape, handle.dtype) == ((1,), torch.int64)
    assert torch.equal(packed_in(handle).to_dense(), weight)
    for b in (None, bias):
        torch.testing.assert_close(packed_linear(x, handle, b, 128), nn.functional.linear(x, weight, b))
        transposed = x.transpose(0, 1)
        torch.testing.assert_close(
            packed_linear(transposed, handle, b, 128), nn.functional.linear(transposed, weight, b)
        )


@pytest.mark.parametrize("shape", [(64, 16), (128, 48), (100, 36), (7, 5), (65, 17)])
def test_the_bytes_foreseen_are_never_less_than_the_bytes_held(shape: tuple[int, int]) -> None:
    transform = pack("w")
    held = transform.bytes_held(transform(torch.randn(shape)))
    foreseen = transform.bytes([shape], [torch.float32])
    assert held <= foreseen
    if shape[0] % 64 == 0 and shape[1] % 16 == 0:
        assert foreseen == shape[0] * shape[1] * 4


def test_a_handle_never_reads_what_is_gone_or_of_another_size() -> None:
    handle = pack("w")(torch.randn(64, 16))
    kept = handle.clone()
    with pytest.raises(RuntimeError, match=r"given torch.float32 \(2, 16\) and 32 rows; the packed weight is .*64, 16"):
        packed_linear(torch.randn(2, 16), handle, None, 32)
    with pytest.raises(RuntimeError, match=r"torch.float64 \(2, 16\) and 64 rows"):
        packed_linear(torch.randn(2, 16).double(), handle, None, 64)
    del handle
    with pytest.raises(RuntimeError, match=r"the packed weight number \d+ is gone"):
        packed_linear(torch.randn(2, 16), kept, None, 64)


def test_a_packed_copy_follows_its_weight() -> None:
    weight, x = nn.Parameter(torch.randn(64, 16)), torch.randn(3, 16)
    derived = DerivedInputs([Derived(pack("w"), (0,), "copy")])

    def check() -> None:
        with torch.no_grad():
            (handle,) = derived([weight])
            torch.testing.assert_close(packed_linear(x, handle, None, 64), nn.functional.linear(x, weight))

    check()
    for event in (
        lambda: weight.data.mul_(3), lambda: weight.data.neg_(), lambda: weight.detach().numpy().__imul__(2),
        lambda: setattr(weight, "data", torch.randn(64, 16)),
    ):  # fmt: skip
        event()
        check()


def test_another_default_device_changes_nothing() -> None:
    weight, x = nn.Parameter(torch.randn(64, 16)), torch.randn(3, 16)
    derived = DerivedInputs([Derived(pack("w"), (0,), "copy"), Derived(transpose("w"), (0,), "copy")])
    with torch.no_grad(), torch.device("meta"):
        for _ in range(3):
            handle, turned = derived([weight])
            torch.testing.assert_close(packed_linear(x, handle, None, 64), nn.functional.linear(x, weight))
            assert torch.equal(turned, weight.t())
            assert derived([weight])[1] is turned
            weight.data.mul_(2)
