"""The figures of one machine as sections of Markdown. The same file gives the same text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fxfuse.benchmarks.markdown import number, ratio, size, table
from fxfuse.benchmarks.records import File

BASE, EAGER, FXFUSE = "inductor", "eager", "fxfuse"
LOSS = 0.98
"""Below this an arm of fxfuse lost, and stands out."""

NOISE = 1.5
"""The middle three fifths of an arm's times lie further apart than by this factor: its median is marked."""

Cell = Mapping[str, Any]
Figures = Mapping[str, Any]


def is_ours(arm: str) -> bool:
    """Whether fxfuse runs in an arm of this name."""
    return arm.startswith((FXFUSE, "kernel:"))


def groups(file: File, suite: str, names: Sequence[str]) -> dict[tuple[str, ...], list[Cell]]:
    """A suite's cells by some of what they measure, each sorted by the rest."""
    made: dict[tuple[str, ...], list[Cell]] = {}
    for cell in file.cells.values():
        if cell["suite"] == suite:
            made.setdefault(tuple(str(cell["what"][name]) for name in names), []).append(cell)
    return {group: sorted(made[group], key=_order) for group in sorted(made)}


def _order(cell: Cell) -> list[tuple[int, str]]:
    return [(value, "") if isinstance(value, int) else (0, str(value)) for value in cell["what"].values()]


def arms_in(cells: Sequence[Cell]) -> list[str]:
    """The arms of these cells, in the order in which they were measured."""
    return list(dict.fromkeys(arm for cell in cells for arm in cell["arms"]))


def best_other(cell: Cell, figure: str) -> tuple[str, float] | None:
    """The fastest arm without fxfuse and its time; None where there is none."""
    times = {arm: figures[f"{figure}ms"] for arm, figures in cell["arms"].items() if not is_ours(arm)}
    return min(times.items(), key=lambda pair: (pair[1], pair[0])) if times else None


def is_noise(figures: Figures, figure: str) -> bool:
    """Whether an arm's times lie so far apart that their median says little."""
    return bool(figures[f"{figure}p80"] > NOISE * figures[f"{figure}p20"])


def _ratio(cell: Cell, arm: str, figure: str = "") -> str:
    """How many times as fast as Inductor's default.

    Args:
        figure: what comes before ``ms`` in the name of the time.
    """
    base, figures = cell["arms"].get(BASE), cell["arms"].get(arm)
    if base is None or figures is None:
        return ""
    text = ratio(base[f"{figure}ms"] / figures[f"{figure}ms"], bold_below=LOSS if is_ours(arm) else 0.0)
    noise = "~" if is_noise(base, figure) or is_noise(figures, figure) else ""
    return f"{text}{noise}{'†' if figures.get('within') is False else ''}"


# --- op ---------------------------------------------------------------------------------------------------------------


def op_sections(file: File) -> list[str]:
    """A heading and tables for each pattern, width and dtype."""
    sections = []
    for (pattern, width, dtype), cells in groups(file, "op", ("pattern", "width", "dtype")).items():
        parts = [f"#### `{pattern}`, {width}, {dtype}", _op_times(cells), _op_rates(file, cells, dtype)]
        sections.append("\n\n".join([*parts, *_not_run(cells)]))
    return sections


def _op_times(cells: Sequence[Cell]) -> str:
    arms = [arm for arm in arms_in(cells) if arm != BASE]
    header = ["rows", "inductor, ms (p20 to p80)", *arms, "fxfuse to the best other"]
    rows = []
    for cell in cells:
        base = cell["arms"].get(BASE)
        times = f"{number(base['ms'])} ({number(base['p20'])} to {number(base['p80'])})" if base else ""
        ratios = [_ratio(cell, arm) for arm in arms]
        rows.append([str(cell["what"]["rows"]), times, *ratios, _to_best(cell)])
    return table(header, rows)


def _to_best(cell: Cell) -> str:
    best, ours = best_other(cell, ""), cell["arms"].get(FXFUSE)
    if best is None or ours is None:
        return ""
    noise = "~" if is_noise(ours, "") or is_noise(cell["arms"][best[0]], "") else ""
    return f"{ratio(best[1] / ours['ms'], bold_below=LOSS)}{noise} ({best[0]})"


def _op_rates(file: File, cells: Sequence[Cell], dtype: str) -> str:
    header = ["rows", "fxfuse ran", "of copy bandwidth", "of matmul rate", "best other: bandwidth, matmul",
              "error, fxfuse", "error, eager", "load"]  # fmt: skip
    launched = any("launched_ms" in figures for cell in cells for figures in cell["arms"].values())
    header += ["launched from Python, to inductor"] if launched else []
    rows = []
    for cell in cells:
        ours, best = cell["arms"].get(FXFUSE), best_other(cell, "")
        error = f"{ours['error_rms']:.1e}" if ours else ""
        rows.append([
            str(cell["what"]["rows"]),
            ours.get("ran", "") if ours else "",
            *(_shares(file, cell, dtype, ours["ms"]) if ours else ("", "")),
            ", ".join(_shares(file, cell, dtype, best[1])) if best else "",
            error,
            f"{cell['eager_error_rms']:.1e}",
            number(cell["load"], 2),
            *([_ratio(cell, FXFUSE, "launched_")] if launched else []),
        ])  # fmt: skip
    return table(header, rows, left=2)


def _shares(file: File, cell: Cell, dtype: str, ms: float) -> tuple[str, str]:
    """Bytes and operations per second as parts of what was measured that the machine can do."""
    shares = []
    for done, rate in ((cell["bytes"], file.rates.get("copy")), (cell["flops"], file.rates.get(dtype))):
        shares.append(f"{done / (ms / 1e3) / rate:.0%}" if rate and done else "")
    return shares[0], shares[1]


# --- models -----------------------------------------------------------------------------------------------------------


def model_sections(file: File) -> list[str]:
    """A table for each model and dtype: tokens per second, and ratios to Inductor's default."""
    sections = []
    for (model, dtype), cells in groups(file, "model", ("model", "dtype")).items():
        for cell in cells:
            title = f"#### {_title(model, dtype, cell)}, prompt of {cell['what']['prompt']} tokens"
            sections.append("\n\n".join([title, _model_table(cell), *_not_run([cell])]))
    return sections


def _title(model: str, dtype: str, cell: Cell) -> str:
    words = [model, dtype, f"{cell['what']['layers']} layers"]
    words += [f"vocabulary of {cell['vocabulary']}"] if cell.get("vocabulary") else []
    return ", ".join(words)


def _model_table(cell: Cell) -> str:
    header = ["arm", "prefill, tokens/s", "to inductor", "decode, tokens/s (p20 to p80)", "to inductor", "tokens"]
    rows = []
    for arm, figures in cell["arms"].items():
        slow, fast = 1e3 / figures["decode_p80"], 1e3 / figures["decode_p20"]
        tokens = {True: "as eager", False: "others"}.get(figures.get("tokens_as_eager"), "")
        rows.append([
            arm, number(figures["prefill_tokens_s"]), _ratio(cell, arm, "prefill_"),
            f"{number(figures['decode_tokens_s'])} ({number(slow)} to {number(fast)})",
            _ratio(cell, arm, "decode_"), tokens,
        ])  # fmt: skip
    ran = [f"`{arm}` ran {f['ran']}." for arm, f in cell["arms"].items() if f.get("ran")]
    load = f"Load when it began: {number(cell['load'], 2)}."
    return "\n\n".join([table(header, rows), " ".join([*ran, load])])


def compile_sections(file: File) -> list[str]:
    """A table for each model and dtype: seconds from empty caches to the first answers."""
    return _apart(file, "compile", ["arm", "compiling, s", "prefill's part, s", "fxfuse itself, s", "graphs"], _seconds)


def _seconds(arm: str, figures: Mapping[str, Any]) -> list[str]:
    own = number(figures["own_seconds"], 2) if is_ours(arm) else ""
    return [number(figures["seconds"]), number(figures["prefill_seconds"]), own, str(figures["graphs"])]


def memory_sections(file: File) -> list[str]:
    """A table for each model and dtype: bytes held after a few answers, and at the peak."""
    header = ["arm", "weights", "loaded, before compiling", "held after", "at the peak"]
    return _apart(file, "memory", header, lambda _, f: [size(f[n]) for n in ("weights", "loaded", "held", "peak")])


def _apart(
    file: File, suite: str, header: Sequence[str], columns: Callable[[str, Mapping[str, Any]], list[str]]
) -> list[str]:
    sections = []
    for (model, dtype), cells in groups(file, suite, ("model", "dtype")).items():
        for cell in cells:
            title = f"#### {_title(model, dtype, cell)}"
            rows = [[arm, *columns(arm, figures)] for arm, figures in cell["arms"].items()]
            load = f"Load when it began: {number(cell['load'], 2)}."
            sections.append("\n\n".join([title, table(header, rows), load, *_not_run([cell])]))
    return sections


def _not_run(cells: Sequence[Cell]) -> list[str]:
    """A line on each reason for which arms did not run."""
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        for arm, why in cell["skipped"].items():
            known = reasons.setdefault(why, [])
            if arm not in known:
                known.append(arm)
    if not reasons:
        return []
    words = [f"{', '.join(f'`{arm}`' for arm in arms)} ({why})" for why, arms in reasons.items()]
    return [f"Not run: {'; '.join(words)}."]


SECTIONS: dict[str, Callable[[File], list[str]]] = {
    "op": op_sections,
    "model": model_sections,
    "compile": compile_sections,
    "memory": memory_sections,
}
"""The tables of each suite."""
