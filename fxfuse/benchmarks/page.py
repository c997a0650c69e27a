"""The generated part of a page of documentation, and its plots: everything that the results files of a folder hold.

The page keeps what stands outside of the two marks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence

from fxfuse.benchmarks import plots, tables
from fxfuse.benchmarks.errors import BenchError
from fxfuse.benchmarks.markdown import number, size
from fxfuse.benchmarks.records import File, load_all

BEGIN = "<!-- begin: made by `fxfuse bench page` -->"
END = "<!-- end -->"
PLOTS = "plots"

_NOTHING = {
    "cuda": "Not measured: not on an H200, and on no other card. The command that does it within 25 minutes: "
    "`fxfuse bench all --device cuda`, then `fxfuse bench page`.",
    "cpu": "Not measured. The command that does it: `fxfuse bench all --device cpu`, then `fxfuse bench page`.",
}

_SUITES = (
    ("op", "One site by itself",
     "Times as fast as `inductor` (torch.compile's default); below 1 is slower, and an arm of fxfuse below "
     f"{tables.LOSS} is bold. Weights are rotated around at least five times the last-level cache. †: further from "
     "float64 than twice eager's error and a floor. ~: noise, the middle three fifths of the times lie further apart "
     f"than by a factor of {tables.NOISE}. Bandwidth counts weights, input and output once, as a part of a "
     "measured copy (read and written, so a kernel that mostly reads can exceed it); the matmul rate is that of a "
     "measured square matmul. Load: processes that wanted to run when the cell began."),
    ("model", "Prefill and decode",
     "A static cache, greedy decoding, batch 1, arms in turns; medians. Tokens: whether the ids are eager's; where two "
     "choices are close, as they are with random weights, low precision may take the other."),
    ("compile", "Compile time",
     "From empty caches, each arm in a process of its own, once; prefill and decode are a graph each. By the clock, so "
     "that on a machine with other load differences between arms are noise, except for fxfuse's own part."),
    ("memory", "Memory",
     "Each arm in a process of its own: the card's memory, or resident bytes on a CPU, where Inductor's own code "
     "counts as well."),
)  # fmt: skip


def generated(files: Sequence[File]) -> str:
    """The part between the marks."""
    parts = []
    for device, title in (("cuda", "GPU"), ("cpu", "CPU")):
        own = [file for file in files if file.environment["device"] == device]
        if own:
            parts += [section for file in own for section in _machine(file, title)]
        else:
            parts.append(f"## {title}\n\n{_NOTHING[device]}")
    return "\n\n".join(parts)


def drawn(files: Sequence[File]) -> dict[str, str]:
    """The plots, by file name: of what is not noise, where that is more than a point."""
    made: dict[str, str] = {}
    for file in files:
        for group, cells in tables.groups(file, "op", ("pattern", "width", "dtype")).items():
            series = _series(cells)
            if any(len(points) > 1 for points in series.values()):
                made[_plot_name(file, group)] = plots.lines(f"{', '.join(group)}: times as fast as inductor", series)
    return made


def _series(cells: Sequence[tables.Cell]) -> dict[str, list[tuple[int, float]]]:
    """Of each arm its row counts, and how many times as fast as Inductor's default it was."""
    series: dict[str, list[tuple[int, float]]] = {}
    for cell in cells:
        base = cell["arms"].get(tables.BASE)
        for arm, figures in cell["arms"].items() if base is not None and not tables.is_noise(base, "") else ():
            if arm != tables.BASE and not tables.is_noise(figures, ""):
                series.setdefault(arm, []).append((cell["what"]["rows"], base["ms"] / figures["ms"]))
    return series


def write(folder: str, page: str, *, check: bool = False) -> list[str]:
    """Put the tables of a folder's files into a page, and the plots beside it; answers with what changed.

    Args:
        check: change nothing.

    Raises:
        BenchError: the page has no marks, or a file is no results file.
    """
    files = load_all(folder)
    wanted = {page: _filled(page, generated(files))}
    place = os.path.join(os.path.dirname(page), PLOTS)
    wanted |= {os.path.join(place, name): text for name, text in drawn(files).items()}
    changed = [path for path, text in wanted.items() if _text_of(path) != text]
    for path in () if check else changed:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(wanted[path])
    return changed


def _filled(page: str, text: str) -> str:
    had = _text_of(page)
    if had is None:
        return f"# Performance\n\n{BEGIN}\n\n{text}\n\n{END}\n"
    before, begin, rest = had.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchError(f"{page} has no lines {BEGIN!r} and {END!r}, between which the tables would stand.")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def _text_of(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _machine(file: File, title: str) -> Iterator[str]:
    yield f"## {title}: {file.environment['name']}\n\n{_setting(file)}"
    for suite, heading, text in _SUITES:
        found = tables.SECTIONS[suite](file)
        if suite == "op":
            known = drawn([file])
            found = [_with_plot(file, section, known) for section in found]
        if found:
            yield "\n\n".join([f"### {heading}", text, *found])


def _with_plot(file: File, section: str, known: Collection[str]) -> str:
    heading, _, _ = section.partition("\n\n")
    name = _plot_name(file, tuple(part.strip("`# ") for part in heading.split(", ")))
    return f"{section}\n\n![times as fast as inductor]({PLOTS}/{name})" if name in known else section


def _plot_name(file: File, group: tuple[str, ...]) -> str:
    stem = os.path.splitext(os.path.basename(file.path))[0]
    return re.sub(r"[^a-z0-9.]+", "-", f"{stem} {' '.join(group)}".lower()) + ".svg"


def _setting(file: File) -> str:
    """What it was measured on, and what was checked there."""
    had = file.environment
    versions = [f"torch {had['torch']}", f"Triton {had['triton']}", f"transformers {had['transformers']}"]
    versions += [f"Python {had['python']}", f"fxfuse {had['fxfuse']}"]
    threads = f"{had['units']} thread{'s' if had['units'] != 1 else ''}"
    where = f"{threads}, {had['arch']}" if had["device"] == "cpu" else had["arch"]
    rates = [f"copy {number(file.rates['copy'] / 1e9)} GB/s"] if "copy" in file.rates else []
    rates += [
        f"{name} matmul {number(rate / 1e12)} TFLOP/s" for name, rate in sorted(file.rates.items()) if name != "copy"
    ]
    lines = [
        f"{where}, last-level cache {size(had['cache_bytes'])}, governor {had['governor'] or 'not readable'}. "
        f"{', '.join(versions)}.",
        f"Measured here: {', '.join(rates)}." if rates else "",
        f"Figures: `{os.path.basename(file.path)}`.",
        f"Every arm was compiled by `{had['inner']}`, not by Inductor." if had["inner"] != "inductor" else "",
    ]
    lines += [f"{step}: {what}." for step, what in sorted(file.steps.items())]
    return " ".join(line for line in lines if line)
