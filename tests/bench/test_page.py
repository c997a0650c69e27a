"""The page that is made of results files: the same text from the same files, losses among it, and only in its marks."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch

from fxfuse.benchmarks import page, plots, tables
from fxfuse.benchmarks.environment import environment
from fxfuse.benchmarks.errors import BenchError
from fxfuse.benchmarks.records import File, key, opened
from tests.bench.benching import cell

ROOT = Path(__file__).parents[2]


def file_in(folder: Path, rows: tuple[int, ...] = (8, 512, 64)) -> File:
    file = opened(str(folder), environment(torch.device("cpu")))
    file.rates = {"copy": 1e10, "bf16": 1e11}
    for count in rows:
        made = copy.deepcopy(cell())
        made["what"]["rows"] = count
        file.cells[key("op", made["what"])] = made
    file.save()
    return file


def test_the_same_files_give_the_same_page_in_whatever_order_they_were_measured(tmp_path: Path) -> None:
    texts = []
    for number, rows in enumerate([(8, 512, 64), (64, 8, 512)]):
        folder = tmp_path / str(number)
        file_in(folder / "results", rows)
        name = str(folder / "page.md")
        changed = page.write(str(folder / "results"), name)
        assert len(changed) == 2
        assert page.write(str(folder / "results"), name) == []
        plot = next((folder / "plots").iterdir())
        texts.append((Path(name).read_text(), plot.name, plot.read_text()))
    assert texts[0] == texts[1]
    starts = [line.split(" | ")[0] for line in texts[0][0].splitlines() if line.startswith(("| 8 ", "| 64", "| 512"))]
    assert starts == ["| 8", "| 64", "| 512"] * 2


def test_ratios_and_losses_are_as_measured(tmp_path: Path) -> None:
    (section,) = tables.op_sections(file_in(tmp_path, (8,)))
    header, _, row, *_ = [line for line in section.splitlines() if line.startswith("|")]
    found = dict(zip(header.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    assert found == {
        "rows": "8", "inductor, ms (p20 to p80)": "2.00 (2.00 to 2.00)", "eager": "0.50", "hand-stacked": "2.00",
        "fxfuse": "1.50", "kernel:slow": "**0.50**†", "fxfuse to the best other": "**0.75** (hand-stacked)",
    }  # fmt: skip
    assert "Not run: `liger` (liger-kernel is not installed)." in section


def test_noise_is_marked(tmp_path: Path) -> None:
    file = file_in(tmp_path, (8,))
    (made,) = file.cells.values()
    made["arms"]["eager"] |= {"p20": 1.0, "p80": 1.6}
    (section,) = tables.op_sections(file)
    assert "| 0.50~ | 2.00 | 1.50 | **0.50**† |" in section
    made["arms"]["inductor"] |= {"p20": 1.0, "p80": 1.6}
    (section,) = tables.op_sections(file)
    assert "| 0.50~ | 2.00~ | 1.50~ | **0.50**~† |" in section


def test_rates_are_parts_of_what_was_measured_that_the_machine_can_do(tmp_path: Path) -> None:
    (section,) = tables.op_sections(file_in(tmp_path, (8,)))
    row = [line for line in section.splitlines() if line.startswith("| 8")][1]
    # 1e7 bytes and 1e8 operations in 4/3 ms, of 1e10 and 1e11 a second
    assert "| 8 | plain (separate) | 75% | 75% | 100%, 100% | 1.0e-04 | 1.0e-04 |" in row


def test_what_stands_outside_of_the_marks_stays(tmp_path: Path) -> None:
    file_in(tmp_path / "results")
    name = tmp_path / "page.md"
    name.write_text(f"# Ours\n\n{page.BEGIN}\nstale words\n{page.END}\n\nBelow.\n")
    page.write(str(tmp_path / "results"), str(name))
    text = name.read_text()
    assert text.startswith(f"# Ours\n\n{page.BEGIN}\n\n## GPU\n\nNot measured:")
    assert text.endswith(f"{page.END}\n\nBelow.\n")
    assert "stale words" not in text
    name.write_text("# Without marks\n")
    with pytest.raises(BenchError, match="has no lines"):
        page.write(str(tmp_path / "results"), str(name))
    assert name.read_text() == "# Without marks\n"


def test_nothing_measured_is_said_with_the_command_that_measures(tmp_path: Path) -> None:
    text = page.generated([])
    assert "Not measured: not on an H200" in text
    assert "`fxfuse bench all --device cuda`" in text
    assert "## CPU" in text


def test_check_changes_nothing(tmp_path: Path) -> None:
    file_in(tmp_path / "results")
    name = tmp_path / "page.md"
    assert len(page.write(str(tmp_path / "results"), str(name), check=True)) == 2
    assert not name.exists()


def test_the_page_in_the_tree_is_made_of_the_files_in_the_tree() -> None:
    assert page.write(str(ROOT / "bench/results"), str(ROOT / "docs/performance.md"), check=True) == []


def test_a_plot_is_well_formed_and_has_a_line_for_each_arm() -> None:
    text = plots.lines("a < b", {"one": [(1, 1.0), (64, 2.0)], "two": [(1, 0.5), (64, 0.9)]})
    root = ElementTree.fromstring(text)
    space = {"svg": "http://www.w3.org/2000/svg"}
    assert len(root.findall("svg:polyline", space)) == 2
    lines: list[Any] = [p.get("points") for p in root.findall("svg:polyline", space)]
    first, last = (tuple(map(float, point.split(","))) for point in lines[0].split())
    assert first[0] < last[0]
    assert first[1] > last[1], "a higher ratio is drawn further up"
