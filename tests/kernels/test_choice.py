"""Choice by measurement: the fastest measured arm wins, a measured loss is COST, and what was not measured is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from end_to_end.tiny import PATTERN, Tiny, batch, close, compiled, graphs, recorded

import fxfuse
from fxfuse import caching, machine, results
from fxfuse.kernels import kernels_for, registry
from fxfuse.kernels.gated_mlp import plain
from fxfuse.kernels.sources import source_of
from fxfuse.results import LEFT_ALONE, Arm, Entry, Shape, Versions

ROWS = 10
VARIANT = {"act": "silu", "norm": "early", "proj": "separate"}
OPERANDS = ("down", "eps", "gate", "up", "weight", "x")


@pytest.fixture(autouse=True)
def own_results(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXFUSE_CACHE_DIR", str(tmp_path))


@pytest.fixture
def register() -> Iterator[Callable[..., None]]:
    """Registers further kernels of the pattern for one test, by name."""
    names: list[str] = []

    def add(name: str, **requirements: Any) -> None:
        names.append(name)
        fxfuse.kernel(PATTERN, name=name, backward="autograd", **requirements)(plain)

    yield add
    registry._REGISTRY[PATTERN] = [k for k in registry._REGISTRY[PATTERN] if k.name not in names]


def entry(times: Mapping[str, float], **more: Any) -> Entry:
    """A measurement of ``Tiny``'s sites, in milliseconds by arm, as this machine would have made it."""
    shape: dict[str, Any] = {
        "pattern": f"fxfuse::{PATTERN}", "variant": tuple(sorted(VARIANT.items())), "operands": OPERANDS,
        "dtype": "float32", "rows": ROWS, "sizes": (("hidden", 16), ("intermediate", 32), ("out", 16)),
        "inner": "eager",
    }  # fmt: skip
    shape.update({k: v for k, v in more.items() if k in shape})
    rest = {k: v for k, v in more.items() if k not in shape}
    known = kernels_for(PATTERN)
    arms = {n: Arm(t, t, t, source_of(known[n]) if n in known else "") for n, t in times.items()}
    return Entry(
        Shape(**shape), **{"machine": machine.machine_of("cpu"), "versions": Versions.here(), "arms": arms, **rest}
    )


def sites(rows: int = ROWS // 2, *, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[fxfuse.Site, ...]:
    """The sites of a compile of ``Tiny``, whose results are eager's."""
    torch._dynamo.reset()
    model = Tiny(layers=1).to(dtype)
    x = batch(rows).to(dtype)
    with torch.no_grad(), recorded() as reports:
        got, want = compiled(model, **options)(x), model(x)
    torch.testing.assert_close(got, want, atol=1e-5 if dtype is torch.float32 else 0.1, rtol=1e-5)
    return reports[0].sites


def sole(**options: Any) -> fxfuse.Site:
    (site,) = sites(**options)
    return site


# --- what is chosen ---------------------------------------------------------------------------------------------------


def test_with_no_data_the_conservative_choice_and_it_is_said() -> None:
    site = sole(placement="separate")
    assert (site.kernel, site.why_kernel) == ("plain", "the narrowest kernel that can run; not measured on this device")


def test_the_fastest_wins_and_the_report_names_the_entry(register: Any) -> None:
    register("quick")
    assert sole().kernel == "plain"
    results.save([entry({LEFT_ALONE: 2.0, "plain": 1.9, "quick": 1.0})])
    site = sole()
    assert site.kernel == "quick"
    here = machine.machine_of("cpu")
    where = f"{here}, float32, 10 rows, hidden=16 intermediate=32 out=16"
    assert site.why_kernel == f"measured fastest: 2.00x as fast as left alone ({where})"


def test_noise_changes_nothing(register: Any) -> None:
    register("quick")
    results.save([entry({LEFT_ALONE: 1.0, "plain": 1.0, "quick": 0.99})])
    site = sole()
    assert site.kernel == "plain"
    assert site.why_kernel.startswith("measured as fast as any: 1.00x")
    results.save([entry({LEFT_ALONE: 0.985, "plain": 1.0})])
    assert sole().kernel == "plain"


def test_a_lead_that_comes_and_goes_is_noise(register: Any) -> None:
    register("quick")
    steady = entry({LEFT_ALONE: 1.0, "plain": 1.0, "quick": 0.8})
    quick = steady.arms["quick"]
    for p80, kernel in ((0.95, "quick"), (1.05, "plain")):
        arms = {**steady.arms, "quick": dataclasses.replace(quick, p80=p80)}
        results.save([dataclasses.replace(steady, arms=arms)])
        assert sole().kernel == kernel
    arms = {**steady.arms, LEFT_ALONE: Arm(0.8, 0.7, 1.05), "quick": quick}
    results.save([dataclasses.replace(steady, arms={**arms, "quick": dataclasses.replace(quick, ms=2.0, p80=2.0)})])
    assert sole().kernel == "plain", "nor is a loss that comes and goes"


def test_a_measured_loss_leaves_the_site_and_names_device_shape_and_ratio() -> None:
    results.save([entry({LEFT_ALONE: 1.0, "plain": 1.25})])
    site = sole()
    assert (site.outcome, site.code, site.kernel) == ("kept", "COST", "")
    for words in ("plain is 0.80x as fast as left alone", machine.cpu_name(), "float32, 10 rows", "hidden=16"):
        assert words in site.reason


def test_that_others_lose_says_nothing_of_a_default_that_was_not_measured() -> None:
    results.save([entry({LEFT_ALONE: 1.0, "stacked": 2.0})])
    site = sole(weights="auto")
    assert (site.kernel, site.why_kernel) == ("plain", "the narrowest kernel that can run; not measured on this device")


def test_what_the_user_named_is_placed_all_the_same(register: Any) -> None:
    register("quick")
    results.save([entry({LEFT_ALONE: 1.0, "plain": 3.0, "quick": 2.0})])
    assert sole().code == "COST"
    named = sole(patterns=[PATTERN])
    assert named.kernel == "quick"
    assert "fastest kernel that can run: 0.50x" in named.why_kernel
    assert sole(kernels={PATTERN: "plain"}).kernel == "plain"


def test_a_kernel_that_cannot_run_at_the_site_is_not_chosen(register: Any) -> None:
    register("quick", rows=(1, 4))
    register("second", rows=(1, 16))
    results.save([entry({LEFT_ALONE: 2.0, "plain": 1.9, "quick": 1.0, "second": 1.2})])
    assert sole().kernel == "second"


def test_what_derives_weights_is_chosen_where_it_may_be() -> None:
    results.save([entry({LEFT_ALONE: 2.0, "plain": 1.9, "stacked": 1.0})])
    found = {placement: sole(weights=placement) for placement in ("auto", "separate", "inline")}
    assert {p: (s.kernel, s.weights) for p, s in found.items()} == {
        "auto": ("stacked", "share"),
        "separate": ("plain", "separate"),
        "inline": ("stacked", "inline"),
    }
    assert "measured" in found["auto"].why_kernel
    assert "measured" not in found["inline"].why_kernel, "it was, with its weights at hand"


def test_a_loss_of_those_that_may_be_placed_is_a_loss() -> None:
    results.save([entry({LEFT_ALONE: 1.5, "plain": 1.9, "stacked": 1.0})])
    assert sole(weights="auto").kernel == "stacked"
    assert sole(weights="separate").code == "COST"


@torch.no_grad()
def test_what_wins_but_cannot_have_its_weights_is_not_computed_anew_on_each_call() -> None:
    results.save([entry({LEFT_ALONE: 1.5, "plain": 1.9, "stacked": 1.0})])
    model = Tiny(layers=1)
    held = model.state_dict()  # its storages are somebody else's, too
    (site,) = fxfuse.explain(model, (batch(),), options={"inner": "eager"}).sites
    assert (site.outcome, site.code) == ("kept", "COST")
    assert "plain is 0.79x as fast as left alone" in site.reason
    assert any("weights are not placed by 'share'" in note for note in site.notes)
    assert held


def test_a_named_pattern_gets_a_kernel_whatever_the_placement() -> None:
    results.save([entry({LEFT_ALONE: 1.5, "plain": 1.9, "stacked": 1.0})])
    found = {placement: sole(patterns=[PATTERN], weights=placement) for placement in ("auto", "separate")}
    assert {p: s.kernel for p, s in found.items()} == {"auto": "stacked", "separate": "plain"}


# --- what a measurement is of -----------------------------------------------------------------------------------------

WON = {LEFT_ALONE: 2.0, "plain": 1.9, "stacked": 1.0}
OTHER_CPU = dataclasses.replace(machine.machine_of("cpu"), name="Another CPU", units=64)
OLD = dataclasses.replace(Versions.here(), torch="1.13.1")

COUNTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "rows of the same bucket": {"rows": 16},
    "rows near by": {"rows": 40},
    "another variant": {"variant": tuple(sorted({**VARIANT, "act": "gelu"}.items()))},
    "sizes near by": {"sizes": (("hidden", 24), ("intermediate", 48), ("out", 16))},
    "another machine of this architecture": {"machine": OTHER_CPU},
    "a patch release": {"versions": dataclasses.replace(Versions.here(), torch=torch.__version__ + ".post1")},
}
DOES_NOT_COUNT: dict[str, dict[str, Any]] = {
    "rows far off": {"rows": 512},
    "one row": {"rows": 1},
    "another dtype": {"dtype": "bfloat16"},
    "other operands": {"operands": (*OPERANDS, "down_bias")},
    "sizes far off": {"sizes": (("hidden", 64), ("intermediate", 32), ("out", 16))},
    "other dimensions": {"sizes": (("hidden", 16),)},
    "another inner compiler": {"inner": "inductor"},
    "another pattern": {"pattern": "fxfuse::rms_norm"},
    "another architecture": {"machine": dataclasses.replace(OTHER_CPU, arch="aarch64")},
    "another kind of device": {"machine": dataclasses.replace(OTHER_CPU, device="cuda")},
    "another torch": {"versions": OLD},
    "another Triton": {"versions": dataclasses.replace(Versions.here(), triton="2.0.0")},
    "another fxfuse": {"versions": dataclasses.replace(Versions.here(), fxfuse="0.0.1")},
}


@pytest.mark.parametrize("what", [*COUNTS, *DOES_NOT_COUNT])
def test_what_counts(what: str) -> None:
    results.save([entry(WON, **{**COUNTS, **DOES_NOT_COUNT}[what])])
    assert sole(weights="auto").kernel == ("stacked" if what in COUNTS else "plain")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("as it is", ""),
        ("rows of the same bucket", ""),
        ("another machine of this architecture", "the nearest machine measured"),
        ("rows near by", "the nearest shape measured"),
        ("another variant", "measured for act=gelu"),
    ],
)
def test_what_is_taken_from_elsewhere_is_said(what: str, said: str) -> None:
    results.save([entry(WON, **COUNTS[what])])
    why = sole(weights="auto").why_kernel
    assert why.endswith(f"; {said})") if said else ";" not in why
    assert what != "another machine of this architecture" or "Another CPU (64 threads)" in why


def test_the_nearest_counts() -> None:
    far = dataclasses.replace(OTHER_CPU, units=machine.machine_of("cpu").units * 32)
    near = dataclasses.replace(OTHER_CPU, units=machine.machine_of("cpu").units * 2)
    lost = {LEFT_ALONE: 1.0, "plain": 2.0}
    results.save([entry(WON, machine=near), entry(lost, machine=far)])
    assert sole(weights="auto").kernel == "stacked"
    results.save([entry(lost, machine=near), entry(WON, machine=far)])
    assert sole(weights="auto").code == "COST"
    results.save([entry(WON)])
    assert sole(weights="auto").kernel == "stacked", "its own machine's before any other's"


def test_a_kernel_that_was_changed_since_counts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    stale = entry(WON)
    stale = dataclasses.replace(stale, arms={**stale.arms, "stacked": Arm(1.0, 1.0, 1.0, "another source")})
    results.save([stale])
    assert sole(weights="auto").kernel == "plain"


def test_training_is_not_measured() -> None:
    results.save([entry({LEFT_ALONE: 1.0, "plain": 9.0})])
    model = Tiny(layers=1)
    fast = compiled(model)
    with recorded() as reports:
        close(fast(batch()), model(batch()))
    assert reports[0].sites[0].kernel == "plain"
    assert "measured" not in reports[0].sites[0].why_kernel


# --- a dynamic row count ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_measured_kernel_for_few_rows_guards_its_range(register: Any) -> None:
    register("few", rows=(1, 16))
    results.save([entry({LEFT_ALONE: 2.0, "plain": 1.9, "few": 1.0})])
    model = Tiny(layers=1)
    fast = torch.compile(model, backend=fxfuse.Backend(inner="eager", on_error="raise"), dynamic=True)
    with recorded() as reports:
        for rows in (5, 6, 7, 40, 50):
            close(fast(batch(rows)), model(batch(rows)))
    assert [s.kernel for r in reports for s in r.sites] == ["few", "plain"]
    assert graphs() == 2


def test_an_exported_program_gets_no_guard(register: Any) -> None:
    register("few", rows=(1, 16))
    results.save([entry({LEFT_ALONE: 2.0, "plain": 1.9, "few": 1.0}, inner="inductor")])
    model = Tiny(layers=1).requires_grad_(False)
    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(model, (batch(),), dynamic_shapes=({1: rows},))
    (site,) = fxfuse.rewrite(program).sites
    assert site.kernel == "plain"
    close(program.module()(batch(40)), model(batch(40)))
    static = torch.export.export(model, (batch(),))
    assert fxfuse.rewrite(static).sites[0].kernel == "few"


# --- one compile, one choice ------------------------------------------------------------------------------------------


def test_the_choice_enters_the_cache_key() -> None:
    patterns = fxfuse.Backend().options.patterns
    before = caching.tag(patterns)
    passes = fxfuse.InductorPass().uuid()
    assert caching.tag(patterns) == before
    results.save([entry(WON)])
    first = caching.tag(patterns)
    assert first != before
    assert fxfuse.InductorPass().uuid() != passes
    results.save([entry({**WON, "stacked": 1.5})])
    assert caching.tag(patterns) != first
    assert caching.tag([]) == caching.tag([])
    results.save([entry(WON, versions=OLD)])
    changed = caching.tag(patterns)
    results.save([entry({**WON, "stacked": 1.6}, versions=OLD)])
    assert caching.tag(patterns) == changed, "what does not count does not change a key"
    results.reset()
    assert caching.tag(patterns) == before


def test_files_are_read_once_for_many_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    results.save([entry(WON)])
    reads = []
    real = results.store._entries_of
    monkeypatch.setattr(results.store, "_entries_of", lambda path: reads.append(path) or real(path))
    results.store._READ.clear()
    with torch.no_grad():
        report = fxfuse.explain(Tiny(layers=6), (batch(),), options={"inner": "eager"})
    assert report.rewritten[PATTERN] == 6
    assert len(reads) == 1
    sole()
    assert len(reads) == 1
