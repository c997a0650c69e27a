"""Parameters that may not be moved, or of which no copy can be kept: the site does without, says why, and is right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import bench.weights.model as tiny
import fxfuse
from bench.weights.model import Decoder, compiled, inputs
from bench.weights.refused import CASES, a_subclass, made_in_inference_mode, parametrized, refusal, tied_in_one_site
from bench.weights.table import _apart
from fxfuse.params import NotShareable, share, stack, unwatchable
from fxfuse.params.share import groups_of

SAYS = {
    "views_of_a_flat_buffer": "is a view: its storage holds 4096 bytes and the source has 2048",
    "expanded": "is not contiguous: shape (32, 16) has the strides (0, 1)",
    "overlapping": "is not contiguous: shape (32, 16) has the strides (1, 1)",
    "transposed": "is not contiguous: shape (32, 16) has the strides (1, 32)",
    "a_subclass": "Quantised, not a plain Parameter or Tensor",
    "requires_grad_differs": "has requires_grad True, and source 0 (gate) has False; they must agree",
    "made_in_inference_mode": "was created under torch.inference_mode",
    "in_shared_memory": "is in shared memory",
    "a_mapped_checkpoint": "is in a private mapping of the file",
    "a_kept_state_dict": "other tensor holds",
    "a_view_held_elsewhere": "other tensors hold",
    "a_numpy_array_on_it": "other tensor holds",
    "memory_of_numpy": "is in memory that someone else may write",
    "tied_in_one_site": "is the same tensor as source 0 (gate) (tied)",
    "tied_by_storage": "other tensor holds",
    "parametrized": "NOT_A_PARAM: gate must be a parameter or buffer of the model",
}
NO_COPY = {a_subclass, made_in_inference_mode, tied_in_one_site}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_may_not_be_shared(case: Any) -> None:
    found = refusal(case, "share")
    assert found.right == ""
    assert SAYS[case.__name__] in found.reason
    expected = ("missed", "") if case is parametrized else ("rewritten", "separate")
    assert (found.outcome, found.weights) == expected


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_same_as_a_copy(case: Any) -> None:
    found = refusal(case, "copy")
    assert found.right == ""
    if case is not parametrized:
        less = case in NO_COPY or case.__name__ in ("expanded", "tied_by_storage", "overlapping")
        assert found.weights == ("separate" if less else "copy"), found.reason


def test_a_copy_says_what_it_cannot_see_and_refresh_serves() -> None:
    model, x = Decoder(), inputs()
    with torch.no_grad():
        fast = compiled(model, "copy")
        assert not _apart(fast(x), model(x))
        assert any("needs fxfuse.refresh" in note for note in fxfuse.reports()[-1].notes)
        model.layers[0].mlp.gate.weight.data[5, 3] += 9.0  # no sampled element, and no version
        assert _apart(fast(x), model(x)), "seen after all: the note says too much"
        assert fxfuse.refresh(model) == 2
        assert not _apart(fast(x), model(x))


@pytest.mark.parametrize("placement", ["separate", "share", "inline"])
def test_the_others_see_that_write_at_once(placement: str) -> None:
    model, x = Decoder(), inputs()
    with torch.no_grad():
        fast = compiled(model, placement)
        fast(x)
        model.layers[0].mlp.gate.weight.data[5, 3] += 9.0
        assert not _apart(fast(x), model(x))


def test_two_compiles_of_one_model_agree_or_the_second_says_why_not() -> None:
    model, x = Decoder(), inputs()
    with torch.no_grad():
        first = compiled(model, "share")
        assert not _apart(first(x), model(x))
        groups = groups_of(model)
        torch._dynamo.reset()
        second = compiled(model, "share", inner="aot_eager")
        assert not _apart(second(x), model(x))
        assert groups_of(model) == groups
        torch._dynamo.reset()
        for layer in model.layers:
            layer.mlp.gate, layer.mlp.up = layer.mlp.up, layer.mlp.gate
        third = compiled(model, "share")
        assert not _apart(third(x), model(x))
        (site, _) = fxfuse.reports()[-1].sites
        assert site.weights == "separate"
        assert "already shares storage as part of stack(gate, up)" in site.notes[0]
        assert "a parameter is in one group at most" in site.notes[0]


# storage that others manage


@pytest.fixture
def one_rank() -> Iterator[Any]:
    """A process group of one, over gloo."""
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("placement", ["separate", "share", "copy", "inline"])
def test_fsdp2_manages_its_storage(one_rank: Any, placement: str) -> None:
    """Its parameters are sharded tensors outside of forward, and plain ones, on storage that it frees, inside."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(3)
    model, x = Decoder(), inputs()
    plain = Decoder()
    plain.load_state_dict(model.state_dict())
    for layer in model.layers:
        fully_shard(layer, mesh=one_rank, reshard_after_forward=True)
    fully_shard(model, mesh=one_rank)
    fast = compiled(model, placement, on_miss="silent")
    with torch.no_grad():
        assert not _apart(fast(x), plain(x))
        for _ in range(3):
            for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
                mine.to_local().mul_(1.5)
                theirs.mul_(1.5)
            assert not _apart(fast(x), plain(x))
    assert groups_of(model) == ()


@pytest.mark.parametrize("placement", ["share", "copy"])
@torch.no_grad()
def test_fsdp2_fills_storage_at_the_address_it_had_without_a_new_version(
    one_rank: Any, placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So an update of one element leaves no trace; weights must be so large that addresses are given again."""
    from torch.distributed.fsdp import fully_shard

    monkeypatch.setattr(tiny, "HIDDEN", 512)
    monkeypatch.setattr(tiny, "INNER", 1024)
    model, plain, x = Decoder(), Decoder(), torch.randn(4, 512)
    plain.load_state_dict(model.state_dict())
    for layer in model.layers:
        fully_shard(layer, mesh=one_rank, reshard_after_forward=True)
    fast = compiled(fully_shard(model, mesh=one_rank), placement)
    fast(x)
    for row in range(40):
        for each in (model.layers[0].mlp.gate.weight.to_local(), plain.layers[0].mlp.gate.weight):
            each[5 + row, 3] += 2.0
        assert not _apart(fast(x), plain(x))
    notes = [note for report in fxfuse.reports() for site in report.sites for note in site.notes]
    assert any("has storage that FSDP2 frees and fills again" in note for note in notes)


def test_parameters_that_other_systems_manage_are_known_by_their_marks() -> None:
    for mark, manager in (("ds_id", "ZeRO-3"), ("_fsdp_flattened", "FSDP")):
        pair = [nn.Parameter(torch.randn(8, 8)) for _ in range(2)]
        assert unwatchable(stack("a", "b"), pair) is None
        setattr(pair[1], mark, 1)
        assert f"source 1 (b) has storage that {'DeepSpeed' if mark == 'ds_id' else 'FSDP'}" in str(
            unwatchable(stack("a", "b"), pair)
        )
        with pytest.raises(NotShareable, match=f"{manager} frees and fills again"):
            share(pair, stack("a", "b"))


@pytest.mark.parametrize("placement", ["share", "copy", "inline"])
def test_dtensor_weights_are_not_derived_from(one_rank: Any, placement: str) -> None:
    from torch.distributed.tensor import Replicate, distribute_tensor

    model, x = Decoder(1), inputs()
    expected = model(x).detach()
    for linear in (model.layers[0].mlp.gate, model.layers[0].mlp.up, model.layers[0].mlp.down):
        linear.weight = nn.Parameter(distribute_tensor(linear.weight.detach(), one_rank, [Replicate()]))
    model.layers[0].norm.weight = nn.Parameter(
        distribute_tensor(model.layers[0].norm.weight.detach(), one_rank, [Replicate()])
    )
    y = distribute_tensor(x, one_rank, [Replicate()])
    with torch.no_grad():
        fast = compiled(model, placement, on_miss="silent")
        assert not _apart(fast(y).full_tensor(), expected)
        model.layers[0].mlp.gate.weight.mul_(2)
        assert not _apart(fast(y).full_tensor(), model(y).full_tensor())
    assert groups_of(model) == ()


@pytest.mark.parametrize("placement", ["separate", "share", "copy", "inline"])
def test_peft_merges_and_unmerges(placement: str) -> None:
    peft = pytest.importorskip("peft")
    model, x = Decoder(), inputs()
    config = peft.LoraConfig(r=2, target_modules=["gate", "up"], init_lora_weights=False)
    tuned = peft.get_peft_model(model, config)
    fast = compiled(tuned.base_model.model, placement, on_miss="silent")
    eager = tuned.base_model.model
    with torch.no_grad():
        for _ in range(2):
            tuned.merge_adapter()
            assert not _apart(fast(x), eager(x))
            merged = eager(x)
            tuned.unmerge_adapter()
            assert not _apart(fast(x), eager(x))
            for name, p in eager.named_parameters():
                if "lora_A" in name:
                    p.mul_(-2)
            tuned.merge_adapter()
            assert (eager(x) - merged).abs().max() > 1e-3
            assert not _apart(fast(x), eager(x))
            tuned.unmerge_adapter()
