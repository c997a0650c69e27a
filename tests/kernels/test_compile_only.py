"""Shipped configurations compile for cards that are not here: no spilled registers, shared memory within the limit.

Here a spread of them; ``python -m fxfuse.kernels.triton.compile_only`` compiles all.
"""

import dataclasses
import functools
from pathlib import Path

import pytest

pytest.importorskip("triton")

from fxfuse.kernels.triton import compile_only, shipped
from fxfuse.kernels.triton import gated_mlp_prefill as prefill
from fxfuse.kernels.triton import norm_gated_mlp_decode as decode
from fxfuse.kernels.triton.tiles import CONFIGS

TARGETS = {target.name: target for target in shipped.TARGETS}
EVERY = 12  # of so many tiles a target compiles one; the more, the shorter this test


def combination(job):
    return job.kernel_name, job.dtype, job.block


@functools.cache
def groups(name):
    """The jobs of a target by kernel, dtype and tile."""
    found = {}
    for job in shipped.jobs(TARGETS[name]):
        found.setdefault(combination(job), []).append(job)
    return list(found.values())


def spread(name):
    """Of every so many combinations one, in one of its cases; another target takes others, and other cases."""
    turn = list(TARGETS).index(name)
    return [group[(i + turn) % len(group)] for i, group in enumerate(groups(name)) if (i + turn) % EVERY == 0]


def job_of(target, kernel, case, tile):
    """The first job of a kernel, case and block shape."""
    shape = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
    found = (j for j in shipped.jobs(target) if j.kernel is kernel and j.case == case)
    return next(j for j in found if shape.items() <= j.constants.items())


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("name", TARGETS)
def test_no_spills_shared_memory_within_the_limit_and_matrix_instructions(name):
    used = [compile_only.compile_job(job) for job in spread(name)]
    assert [u.problem for u in used if u.problem] == []
    assert all(u.registers > 0 for u in used)
    assert all(u.matrix for u in used if u.job.instruction)


def test_every_kernel_is_shipped_for_every_target_and_in_the_spread():
    kernels = {"rms_norm", "scale_rows", "gate_up", "down", "linears", "reduce", "gated"}
    for name in TARGETS:
        assert {group[0].kernel_name for group in groups(name)} == kernels
    assert {job.kernel_name for name in TARGETS for job in spread(name)} >= kernels - {"reduce"}


@pytest.mark.parametrize(("name", "options"), [("sm_90", {"maxnreg": 32}), ("gfx942", {"waves_per_eu": 8})])
def test_spilled_registers_are_found(name, options):
    """The measure itself: a compiler that is held to too few registers must show up as a problem."""
    job = job_of(TARGETS[name], decode.gate_up_kernel, "plain", CONFIGS[2, 16].wide)
    used = compile_only.compile_job(job, **options)
    assert used.spills > 0
    assert "spills" in used.problem


def test_too_much_shared_memory_is_found():
    job = job_of(TARGETS["gfx942"], decode.gate_up_kernel, "plain", CONFIGS[2, 16].wide)
    used = compile_only.compile_job(dataclasses.replace(job, constants=job.constants | {"BLOCK_N": 64}))
    assert used.shared > 64 * 1024
    assert "shared memory, at most 65536" in used.problem


@pytest.mark.parametrize("name", ["sm_80", "sm_90", "sm_100"])
def test_weights_are_streamed_16_bytes_at_a_time(name):
    for tile in (CONFIGS[2, 1].wide, CONFIGS[2, 16].wide):
        asm = compile_only.compiled(job_of(TARGETS[name], decode.gate_up_kernel, "plain", tile)).asm
        assert "cp.async.cg.shared.global" in asm["ptx"]  # .cg copies exactly 16 bytes
        # Not from the PTX: whether an asynchronous copy carries its policy there depends on the card and on Triton.
        copies = [line for line in asm["ttgir"].splitlines() if "ttg.async_copy_global_to_local %gate" in line]
        assert copies
        assert all("evict_first" in line for line in copies)
    assert "mma.sync" in asm["ptx"]


def test_main_prints_a_table_and_succeeds(capsys, monkeypatch):
    first = spread("sm_90")[:1]
    monkeypatch.setattr(compile_only, "jobs", lambda target: first)
    assert compile_only.main(["sm_90"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["job", "regs", "spills", "shared", "s", "matrix"]
    assert printed[1].startswith("sm_90 ")
    assert printed[-1] == "1 compiled, 0 with problems"


def resources(job, **used):
    return compile_only.Resources(
        job, **{"registers": 64, "spills": 0, "shared": 0, "matrix": {}, "seconds": 0.1, **used}
    )


def test_the_table_has_a_row_for_each_tile_and_a_column_for_each_card(capsys, monkeypatch):
    jobs = {name: [job_of(TARGETS[name], prefill.gated_kernel, "plain", tile)] for name, tile in (
        ("sm_90", prefill.TILES["described"][2]), ("sm_100", prefill.TILES["described"][2]))}  # fmt: skip
    jobs["sm_90"].append(dataclasses.replace(jobs["sm_90"][0], case="full"))
    made = iter([
        resources(jobs["sm_90"][0], registers=180, shared=1024 * 160, matrix={"wgmma": 8}),
        resources(jobs["sm_90"][1], registers=255, shared=1024 * 96, matrix={"wgmma": 8}),
        resources(jobs["sm_100"][0], registers=190, matrix={"tcgen05": 16}),
    ])  # fmt: skip
    monkeypatch.setattr(compile_only, "jobs", lambda target: jobs[target.name])
    monkeypatch.setattr(compile_only, "compile_job", lambda job: next(made))
    assert compile_only.main(["--markdown", "sm_90", "sm_100"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| kernel | dtype | tile | sm_90 | sm_100 |",
        "|---|---|---|---|---|",
        "| gated | bfloat16 | 128x128x64 | 255 regs, 160 KiB, wgmma | 190 regs, tcgen05 |",
    ]


def test_the_page_has_a_row_for_each_tile_that_is_shipped():
    """What the row says, only a compile of all of them can tell; see the command at the top."""
    page = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
    table = [line for line in page.splitlines() if line.startswith("| ")]
    start = next(i for i, line in enumerate(table) if line.startswith("| kernel | dtype | tile |"))
    rows = [tuple(cell.strip() for cell in line.split("|")[1:4]) for line in table[start + 1 :]]
    jobs = [job for name in TARGETS for group in groups(name) for job in group]
    assert set(rows) == {(job.kernel_name, job.numbers, job.block) for job in jobs}
    assert len(rows) == len(set(rows))
    assert "spilled" not in "".join(table[start:])


def test_a_kernel_without_its_matrix_instruction_is_a_problem():
    job = job_of(TARGETS["sm_90"], prefill.gated_kernel, "plain", prefill.TILES["described"][2])
    assert job.instruction == "wgmma"
    assert resources(job, matrix={"wgmma": 4}).problem is None
    assert resources(job, matrix={"mma": 4}).problem == f"{job}: no wgmma instruction, but 4 mma"
    assert resources(job).problem == f"{job}: no wgmma instruction, but none at all"


@pytest.mark.parametrize(("name", "instruction"), [("sm_90", "wgmma"), ("sm_100", "tcgen05")])
def test_prefill_copies_tiles_by_descriptor(name, instruction):
    job = job_of(TARGETS[name], prefill.gated_kernel, "plain", prefill.TILES["described"][2])
    asm = compile_only.compiled(job).asm
    assert asm["ptx"].count("cp.async.bulk.tensor.2d.shared") >= 3  # x, gate, up
    assert "cp.async.bulk.tensor.2d.global.shared" in asm["ptx"]  # out
    assert compile_only.compile_job(job).matrix.keys() == {instruction}


def test_many_weight_rows_to_a_tile_take_the_warpgroup_instruction():
    job = job_of(TARGETS["sm_90"], decode.gate_up_kernel, "plain", CONFIGS[2, 64].wide)
    assert compile_only.compile_job(job).matrix.keys() == {"wgmma"}


def test_main_refuses_an_unknown_target(capsys):
    with pytest.raises(SystemExit):
        compile_only.main(["sm_70"])
    assert "unknown target 'sm_70', expected one of sm_80, sm_90, sm_100, gfx942" in capsys.readouterr().err
