"""The results file: what is no results file is refused with what is wrong, and a stopped run leaves a valid one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fxfuse.benchmarks import records
from fxfuse.benchmarks.budget import Budget
from fxfuse.benchmarks.environment import environment, slug
from fxfuse.benchmarks.errors import BenchError
from fxfuse.benchmarks.records import key, load, opened, problems
from tests.bench.benching import cell


def data() -> dict[str, Any]:
    made = cell()
    return {
        "schema": records.SCHEMA,
        "environment": environment(torch.device("cpu")),
        "rates": {"copy": 1e10, "bf16": 1e11},
        "steps": {},
        "cells": {key("op", made["what"]): made},
    }


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    file = opened(str(tmp_path), environment(torch.device("cpu")))
    made = cell()
    what, suite = made.pop("what"), made.pop("suite")
    file.put(key(suite, what), suite, what, made, 0.5)
    assert problems(json.loads(Path(file.path).read_text())) == []
    again = load(file.path)
    assert (again.cells, again.environment) == (file.cells, file.environment)
    assert again.lacks(key(suite, what), ["eager", "liger", "other"]) == ["other"]
    assert again.lacks("op/else", ["eager"]) == ["eager"]
    assert [p.name for p in tmp_path.iterdir()] == [f"{slug(file.environment)}.json"]


def change(path: list[str], value: Any) -> dict[str, Any]:
    """The valid data with one value replaced, or taken out where it is None."""
    made = copy.deepcopy(data())
    at: Any = made
    for step in path[:-1]:
        at = at[next(iter(at)) if step == "*" else step]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return made


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["schema"], 99, "its schema is 99"),
        (["environment"], None, "environment is missing"),
        (["steps"], [], "steps is missing"),
        (["rates", "copy"], "fast", "rates: copy is no number"),
        (["rates", "copy"], -1, "rates: copy is no number"),
        (["cells", "*", "suite"], "opp", "its suite is 'opp', not op, model, compile or memory"),
        (["cells", "*", "skipped"], None, "skipped is missing"),
        (["cells", "*", "what", "rows"], 16, "it holds op/rms_norm_gated_mlp/qwen3-0.6b/bf16/16"),
        (["cells", "*", "arms", "fxfuse", "ms"], None, "fxfuse has no ms"),
        (["cells", "*", "arms", "fxfuse", "ms"], True, "fxfuse has no ms"),
        (["cells", "*", "skipped", "fxfuse"], "no", "fxfuse is measured and skipped"),
    ],
)
def test_one_edit_makes_it_no_results_file(tmp_path: Path, path: list[str], value: Any, said: str) -> None:
    assert problems(data()) == []
    changed = change(path, value)
    assert said in "; ".join(problems(changed))
    (tmp_path / "x.json").write_text(json.dumps(changed))
    with pytest.raises(BenchError, match=r"x\.json is no results file"):
        load(str(tmp_path / "x.json"))


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BenchError):
        load(str(tmp_path / "x.json"))


def test_figures_of_another_environment_are_not_mixed_in(tmp_path: Path) -> None:
    here = environment(torch.device("cpu"))
    opened(str(tmp_path), here).save()
    other = {**here, "python": "3.0.0"}
    with pytest.raises(BenchError, match=r"python was .* and is '3\.0\.0'.*--fresh"):
        opened(str(tmp_path), other)
    assert opened(str(tmp_path), other, fresh=True).cells == {}
    assert opened(str(tmp_path), {**here, "governor": "powersave"}).environment["governor"] == "powersave"


def test_another_torch_or_thread_count_is_another_file(tmp_path: Path) -> None:
    here = environment(torch.device("cpu"))
    others = [{**here, "torch": "2.12.0"}, {**here, "units": 64}, {**here, "inner": "eager"}]
    assert len({slug(e) for e in (here, *others)}) == 4


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = opened(str(tmp_path), environment(torch.device("cpu")))
    file.save()
    before = Path(file.path).read_text()

    def fails(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fails)
    file.rates["copy"] = 1.0
    with pytest.raises(OSError, match="disk full"):
        file.save()
    assert Path(file.path).read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == [Path(file.path).name]


def test_a_cell_begins_only_if_one_as_long_as_the_longest_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    budget = Budget(10.0)
    assert budget.allows
    with budget.spending():
        now[0] = 4.0
    assert budget.allows
    assert budget.left == 6.0
    with budget.spending():
        now[0] = 7.0
    assert not budget.allows
    assert Budget(None).allows
    assert Budget(None).left is None
