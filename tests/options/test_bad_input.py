"""Bad options: refused at once, by every door, with one message that says what would be valid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from end_to_end.tiny import PATTERN, Tiny, batch, close, graphs
from torch import Tensor

import fxfuse

# Each with what the message must say.
BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key": ({"paterns": []}, ["unknown option 'paterns'", "Did you mean 'patterns'?", "'extra_memory'"]),
    "unknown key with no near name": ({"zzzzzz": 1}, ["unknown option 'zzzzzz'", "Valid: 'add'"]),
    "a key of the inner compiler": ({"max_autotune": True}, ["unknown option 'max_autotune'", "'inner_options'"]),
    "unknown pattern": ({"patterns": ["rms_norm_gated_mpl"]}, ["patterns: unknown pattern", "Did you mean", PATTERN]),
    "unknown pattern to add": ({"add": ["rms_norm_gated_ml"]}, ["add: unknown pattern", "Did you mean", PATTERN]),
    "unknown pattern to drop": ({"drop": ["gated"]}, ["drop: unknown pattern 'gated'", PATTERN]),
    "unknown pack": ({"patterns": ["fxfus::" + PATTERN]}, ["unknown pattern"]),
    "a pattern without a list": ({"patterns": PATTERN}, ["patterns is a list", repr(PATTERN)]),
    "a pattern of another type": ({"patterns": [7]}, ["pattern names and Pattern objects", "7"]),
    "a pattern twice": ({"patterns": [PATTERN, "fxfuse::" + PATTERN]}, ["active twice", PATTERN]),
    "patterns and add": ({"patterns": [PATTERN], "add": [PATTERN]}, ["exact list", "add or drop"]),
    "paths of another type": ({"paths": 3}, ["paths", "3"]),
    "paths with a number": ({"paths": ["model", 3]}, ["globs over module paths"]),
    "an empty glob": ({"paths": [""]}, ["globs over module paths"]),
    "kernels as a name": ({"kernels": "plain"}, ["kernels is a dict", "'plain'"]),
    "unknown kernel": ({"kernels": {PATTERN: "plian"}}, ["unknown kernel 'plian'", "Did you mean 'plain'?", "'off'"]),
    "a kernel of another type": ({"kernels": {PATTERN: 3}}, ["kernels"]),
    "a kernel of an unknown pattern": ({"kernels": {"rms_norm_mlp": "plain"}}, ["kernels: unknown pattern", PATTERN]),
    "expect as a number": ({"expect": 2}, ["expect", "2"]),
    "expect of an unknown pattern": ({"expect": {"rms_norm_gated": 2}}, ["expect: unknown pattern", PATTERN]),
    "a negative count": ({"expect": {PATTERN: -1}}, ["at least 0", "-1"]),
    "a count that is true": ({"expect_rewritten": {PATTERN: True}}, ["expect_rewritten", "True"]),
    "a count of an inactive pattern": ({"expect": {PATTERN: 1}, "drop": [PATTERN]}, ["not among the active patterns"]),
    "on_miss": ({"on_miss": "warning"}, ["on_miss", "'warning'", "Did you mean 'warn'?", "'error'", "'silent'"]),
    "on_error": ({"on_error": "ignore"}, ["on_error", "'fallback'", "'raise'"]),
    "weights": ({"weights": "shared"}, ["weights", "Did you mean 'share'?", "'inline'", "'separate'"]),
    "weights of another type": ({"weights": 3}, ["weights", "3"]),
    "weights of one pattern": ({"weights": {PATTERN: "inlin"}}, ["Did you mean 'inline'?"]),
    "weights of an unknown pattern": ({"weights": {"rms_norm_gated": "share"}}, ["weights: unknown pattern"]),
    "a negative fraction": ({"extra_memory": -0.5}, ["extra_memory", "-0.5"]),
    "a fraction that is text": ({"extra_memory": "10%"}, ["extra_memory", "10%"]),
    "an infinite fraction": ({"extra_memory": float("inf")}, ["extra_memory", "inf"]),
    "a fraction that is no number": ({"extra_memory": float("nan")}, ["extra_memory", "nan"]),
    "inner": ({"inner": "inducto"}, ["inner", "Did you mean 'inductor'?", "'aot_eager'", "'eager'"]),
    "inner_options": ({"inner_options": [1]}, ["inner_options is a dict"]),
    "mode": ({"mode": "max-autotun"}, ["mode", "Did you mean 'max-autotune'?", "'reduce-overhead'"]),
    "a mode without Inductor": ({"mode": "max-autotune", "inner": "eager"}, ["Inductor's", "inner='eager'"]),
    "report_dir": ({"report_dir": 3}, ["report_dir is a directory", "3"]),
    "verify": ({"verify": "yes"}, ["verify"]),
}


def plus_one(x: Tensor) -> Tensor:
    return x + 1


def by_keywords(options: dict[str, Any]) -> None:
    fxfuse.Backend(**options)


def by_dict(options: dict[str, Any]) -> None:
    fxfuse.Backend(options=options)


def by_explain(options: dict[str, Any]) -> None:
    fxfuse.explain(plus_one, (torch.ones(1),), options=options)


def by_assert_fused(options: dict[str, Any]) -> None:
    fxfuse.testing.assert_fused(plus_one, (torch.ones(1),), expect={}, options=options)


def by_rewrite(options: dict[str, Any]) -> None:
    fxfuse.rewrite(torch.fx.symbolic_trace(plus_one), options=options)


def by_name(options: dict[str, Any]) -> None:
    torch.compile(plus_one, backend="fxfuse", options=options)(torch.ones(1))


def by_name_in_place(options: dict[str, Any]) -> None:
    model = Tiny(layers=0)  # a module of torch itself is never a frame of its own
    model.compile(backend="fxfuse", options=options)
    model(batch())


def by_a_backend_with_options_of_compile(options: dict[str, Any]) -> None:
    torch.compile(plus_one, backend=fxfuse.Backend(), options=options)(torch.ones(1))


DOORS: list[Callable[[dict[str, Any]], None]] = [
    by_keywords, by_dict, by_explain, by_assert_fused, by_rewrite, by_name, by_name_in_place,
    by_a_backend_with_options_of_compile,
]  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_every_door_gives_the_same_sentence(what: str) -> None:
    options, fragments = BAD[what]
    messages = []
    for door in DOORS:
        if door is by_assert_fused and "expect_rewritten" in options:
            continue
        with pytest.raises(ValueError) as caught:
            door(options)
        assert isinstance(caught.value, fxfuse.OptionError), door.__name__
        assert not isinstance(caught.value, torch._dynamo.exc.BackendCompilerFailed), door.__name__
        messages.append(str(caught.value).split("\n")[0])  # Dynamo adds a paragraph of its own
    assert len(set(messages)) == 1, messages
    for fragment in fragments:
        assert fragment in messages[0]


@pytest.mark.parametrize("key", ["kernels", "expect", "expect_rewritten", "weights"])
def test_hinted_names_are_accepted(key: str) -> None:
    value: Any = {"kernels": "plain", "weights": "inline"}.get(key, 1)
    with pytest.raises(fxfuse.OptionError, match="Did you mean") as caught:
        fxfuse.Backend(**{key: {"rms_norm_gated_ml": value}})
    hinted = str(caught.value).split("Did you mean '")[1].split("'")[0]
    assert fxfuse.Backend(**{key: {hinted: value}}) == fxfuse.Backend(**{key: {PATTERN: value}})
    assert fxfuse.Backend(**{key: {"fxfuse::" + PATTERN: value}}) == fxfuse.Backend(**{key: {PATTERN: value}})


GOOD: list[dict[str, Any]] = [
    {},
    {"patterns": None},
    {"patterns": []},
    {"patterns": [PATTERN]},
    {"patterns": ["fxfuse::" + PATTERN]},
    {"add": [PATTERN]},
    {"drop": [PATTERN]},
    {"paths": "model.*"},
    {"paths": ["model.**", "!model.layers.1"]},
    {"kernels": {PATTERN: "off"}},
    {"kernels": {PATTERN: "plain"}},
    {"expect": {PATTERN: 0}},
    {"weights": {PATTERN: "inline"}},
    {"extra_memory": 1},
    {"inner_options": {"max_autotune": False}},
    {"mode": "default"},
    {"report_dir": None},
    {"verify": False},
]


@pytest.mark.parametrize("options", GOOD, ids=str)
def test_good_options_are_taken(options: dict[str, Any]) -> None:
    """The positive twin of the table above."""
    assert fxfuse.Backend(**options) == fxfuse.Backend(options=options)
    fxfuse.explain(plus_one, (torch.ones(1),), options={**options, "on_miss": "silent", "paths": []})


def test_a_mode_of_torch_compile_is_checked_too() -> None:
    for backend in ("fxfuse", fxfuse.Backend()):
        with pytest.raises(fxfuse.OptionError, match="Did you mean 'max-autotune'"):
            torch.compile(plus_one, backend=backend, mode="max-autotun")(torch.ones(1))
    with pytest.raises(fxfuse.OptionError, match="Did you mean 'max-autotune'"):
        fxfuse.Backend(mode="max-autotun")
    with pytest.raises(fxfuse.OptionError, match="mode is given twice"):
        fxfuse.Backend(mode="default", options={"mode": "default"})


@pytest.mark.parametrize("options", [[("inner", "eager")], "eager", 3])
def test_options_that_are_no_dict(options: Any) -> None:
    with pytest.raises(fxfuse.OptionError, match="options is a dict"):
        fxfuse.Backend(options=options)
    with pytest.raises(fxfuse.OptionError, match="options is a dict"):
        fxfuse.explain(plus_one, (torch.ones(1),), options=options)


def test_a_bad_option_leaves_nothing_behind() -> None:
    """After the refusal the same function compiles as if nothing had been."""
    before = fxfuse.reports()
    with pytest.raises(ValueError):
        by_name({"weights": "shared"})
    assert fxfuse.reports() == before
    fast = torch.compile(plus_one, backend="fxfuse", options={"inner": "eager"})
    assert torch.equal(fast(torch.ones(1)), torch.full((1,), 2.0))


# --- backends compare by their options -------------------------------------------------------------------------------


def test_equal_options_make_equal_backends() -> None:
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"patterns": None}),
        ({}, {"weights": "auto", "inner": "inductor"}),
        ({"paths": "a"}, {"paths": ["a"]}),
        ({"patterns": [PATTERN]}, {"patterns": ["fxfuse::" + PATTERN]}),
        ({"extra_memory": 1}, {"extra_memory": 1.0}),
        ({"expect": {PATTERN: 1}}, {"expect": {PATTERN: 1}}),
        (
            {"inner_options": {"trace.enabled": [1]}},
            {"inner_options": {"trace.enabled": [1]}},
        ),  # a value without a hash
    ]
    for first, second in pairs:
        assert fxfuse.Backend(**first) == fxfuse.Backend(**second)
        assert hash(fxfuse.Backend(**first)) == hash(fxfuse.Backend(**second))


def test_different_options_make_different_backends() -> None:
    variants: list[dict[str, Any]] = [
        {}, {"patterns": []}, {"paths": ["a"]}, {"kernels": {PATTERN: "off"}}, {"weights": "share"},
        {"weights": {PATTERN: "share"}}, {"extra_memory": 0.5}, {"inner": "eager"}, {"mode": "reduce-overhead"},
        {"inner_options": {"max_autotune": True}}, {"on_error": "raise"}, {"expect": {PATTERN: 1}},
    ]  # fmt: skip
    backends = [fxfuse.Backend(**v) for v in variants]
    for i, first in enumerate(backends):
        assert [first == second for second in backends] == [i == j for j in range(len(backends))]
    assert fxfuse.Backend() != "fxfuse"


@torch.no_grad()
def test_equal_options_by_name_compile_once() -> None:
    model, x = Tiny(layers=1), batch()
    for _ in range(12):
        close(torch.compile(model, backend="fxfuse", options={"inner": "eager", "paths": ["layers.0"]})(x), model(x))
    assert graphs() == 1
    torch.compile(model, backend="fxfuse", options={"inner": "eager", "paths": ["**.mlp"]})(x)
    assert graphs() == 2
