"""Shipped configurations compile for cards that are not here: no spilled registers, shared memory within the limit.

Here a spread of them; ``python -m fxfuse.kernels.triton.compile_only`` compiles all.
"""

import dataclasses

import pytest

pytest.importorskip("triton")

from fxfuse.kernels.triton import compile_only
from fxfuse.kernels.triton import norm_gated_mlp_decode as decode

TARGETS = {target.name: target for target in compile_only.TARGETS}


def combination(job):
    return job.kernel.__name__, job.dtype, *(job.constants.get(name) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))


def spread(target):
    """Every other kernel x dtype x tile, in one of its cases; the next target takes the others, and the next case."""
    groups = {}
    for job in compile_only.jobs(target):
        groups.setdefault(combination(job), []).append(job)
    turn = list(TARGETS).index(target.name)
    return [group[(i + turn) % len(group)] for i, group in enumerate(groups.values()) if (i + turn) % 2 == 0]


def job_of(target, kernel, case, tile):
    """The first job of a kernel, case and block shape."""
    shape = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
    found = (j for j in compile_only.jobs(target) if j.kernel is kernel and j.case == case)
    return next(j for j in found if shape.items() <= j.constants.items())


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("name", TARGETS)
def test_no_spills_and_shared_memory_within_the_limit(name):
    used = [compile_only.compile_job(job) for job in spread(TARGETS[name])]
    assert [u.problem for u in used if u.problem] == []
    assert all(u.registers > 0 for u in used)


def test_the_spread_covers_every_tile_dtype_and_kernel():
    shipped = {combination(job) for target in TARGETS.values() for job in compile_only.jobs(target)}
    assert len(shipped) == 2 * (2 * 5 + 4) + 3  # two kernels x (16-bit dtypes x tiles + fp32 tiles) + the reduce kernel
    assert {combination(job) for target in TARGETS.values() for job in spread(target)} == shipped


@pytest.mark.parametrize(("name", "options"), [("sm_90", {"maxnreg": 32}), ("gfx942", {"waves_per_eu": 8})])
def test_spilled_registers_are_found(name, options):
    """The measure itself: a compiler that is held to too few registers must show up as a problem."""
    job = job_of(TARGETS[name], decode.gate_up_kernel, "plain", decode.CONFIGS[2, False].wide)
    used = compile_only.compile_job(job, **options)
    assert used.spills > 0
    assert "spills" in used.problem


def test_too_much_shared_memory_is_found():
    job = job_of(TARGETS["gfx942"], decode.gate_up_kernel, "plain", decode.CONFIGS[2, False].wide)
    used = compile_only.compile_job(dataclasses.replace(job, constants=job.constants | {"BLOCK_N": 64}))
    assert used.shared > 64 * 1024
    assert "shared memory, at most 65536" in used.problem


@pytest.mark.parametrize("name", ["sm_80", "sm_90", "sm_100"])
def test_weights_are_streamed_16_bytes_at_a_time(name):
    for tile in (decode.CONFIGS[2, True].wide, decode.CONFIGS[2, False].wide):
        asm = compile_only.compiled(job_of(TARGETS[name], decode.gate_up_kernel, "plain", tile)).asm
        assert "cp.async.cg.shared.global" in asm["ptx"]  # .cg copies exactly 16 bytes
        # Not from the PTX: whether an asynchronous copy carries its policy there depends on the card and on Triton.
        copies = [line for line in asm["ttgir"].splitlines() if "ttg.async_copy_global_to_local %gate" in line]
        assert copies
        assert all("evict_first" in line for line in copies)
    assert "mma.sync" in asm["ptx"]


def test_main_prints_a_table_and_succeeds(capsys, monkeypatch):
    first = spread(TARGETS["sm_90"])[:1]
    monkeypatch.setattr(compile_only, "jobs", lambda target: first)
    assert compile_only.main(["sm_90"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["job", "regs", "spills", "shared", "s"]
    assert printed[1].startswith("sm_90 ")
    assert printed[-1] == "1 compiled, 0 with problems"


def test_main_refuses_an_unknown_target(capsys):
    with pytest.raises(SystemExit):
        compile_only.main(["sm_70"])
    assert "unknown target 'sm_70', expected one of sm_80, sm_90, sm_100, gfx942" in capsys.readouterr().err
