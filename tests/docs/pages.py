"""Runs the code blocks of a page of documentation, in order, and compares what they print with what the page shows.

``python tests/docs/pages.py docs/authoring.md`` prints a diff for each difference and fails; ``--write`` puts what was
printed into the page instead. Kinds of blocks, by the words after the fence:

- ``python``: run in one namespace, in an empty folder that is the current one and on the import path.
- ``python file=NAME``: written to that file in the folder, for later blocks to import.
- ``sh``: each line a command of fxfuse, run in the folder.
- ``text`` straight after one of the above: what it prints.
- anything else is for the reader's eyes only.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FENCE = "```"
RUN = ("python", "sh")
CHANGING = (
    (re.compile(r"\d+(\.\d+)? (s|ms)\b"), "# s"),  # times
    (re.compile(r"(?<=\.md:)\d+|(?<=\.py:)\d+"), "#"),  # lines
    (re.compile(r"\d+\.\d$", re.MULTILINE), "#"),  # the last column of `fxfuse check`
    (re.compile(r"\b(\d+)/\1\b"), "all"),  # how much it tried
    (re.compile(r"\d+(?=% of allowed)"), "#"),
    (re.compile(r" {2,}"), "  "),  # columns
)
"""What may differ from run to run, or with an edit of a page or of the checks."""


class PageError(AssertionError):
    """A page that cannot be run as it is written; the message names its line."""


@dataclass
class Block:
    """One fenced block: ``line`` is that of its opening fence."""

    kind: str
    words: tuple[str, ...]
    line: int
    lines: list[str]

    @property
    def text(self) -> str:
        return "".join(self.lines)


@dataclass
class Shown:
    """A ``text`` block and what the block before it printed."""

    block: Block
    printed: str

    @property
    def agrees(self) -> bool:
        return _masked(self.block.text) == _masked(self.printed)

    def diff(self, page: str) -> str:
        lines = difflib.unified_diff(
            self.block.text.splitlines(), self.printed.splitlines(), f"{page}:{self.block.line} shows", "was printed",
            lineterm="",
        )  # fmt: skip
        return "\n".join(lines)


def _masked(text: str) -> str:
    for changing, mask in CHANGING:
        text = changing.sub(mask, text)
    return text.rstrip()


def blocks(text: str) -> Iterator[Block | None]:
    """The fenced blocks; None where there is prose between two of them."""
    current: Block | None = None
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if current is not None and line.rstrip() == FENCE:
            yield current
            current = None
        elif current is not None:
            current.lines.append(line)
        elif line.startswith(FENCE):
            kind, *words = line[len(FENCE) :].split() or [""]
            current = Block(kind, tuple(words), number, [])
        elif line.strip():
            yield None
    if current is not None:
        raise PageError(f"line {current.line}: the block has no end.")


def run(page: Path, folder: Path) -> list[Shown]:
    """Run a page's blocks in ``folder``. What prints must be shown, and what is shown must have been printed."""
    namespace: dict[str, Any] = {"__name__": "page"}
    shown: list[Shown] = []
    last: tuple[Block, str] | None = None
    name = str(page.resolve())
    for block in [*blocks(page.read_text(encoding="utf-8")), None]:
        if block is not None and block.kind == "text":
            if last is None:
                raise PageError(f"{page}:{block.line}: a text block stands straight after a block that prints.")
            shown.append(Shown(block, last[1]))
            last = None
            continue
        if last is not None and last[1].strip():
            raise PageError(f"{page}:{last[0].line}: the block prints what the page does not show:\n{last[1]}")
        last = None
        if block is not None and block.kind in RUN:
            last = block, _output(block, name, folder, namespace)
    return shown


def _output(block: Block, name: str, folder: Path, namespace: dict[str, Any]) -> str:
    target = next((w.removeprefix("file=") for w in block.words if w.startswith("file=")), None)
    if target is not None:
        (folder / target).write_text(block.text, encoding="utf-8")
        return ""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            if block.kind == "sh":
                for line in block.lines:
                    print(_command(line, folder))
            else:  # as if the page were a Python file, so that errors and stack traces name its lines
                exec(compile("\n" * block.line + block.text, name, "exec"), namespace)
    except (Exception, SystemExit) as error:
        what = "".join(traceback.format_exception(error))
        raise PageError(f"{name}:{block.line}: the block fails.\n{printed.getvalue()}{what}") from error
    return printed.getvalue().replace(f"{folder}{os.sep}", "")


def _command(line: str, folder: Path) -> str:
    """What a command of fxfuse prints, in a process of its own: it loads the page's files anew."""
    program, *arguments = shlex.split(line, comments=True)
    if program != "fxfuse":
        raise PageError(f"only commands of fxfuse can be run; given {program!r}.")
    command = [sys.executable, "-W", "ignore", "-m", "fxfuse.cli", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PageError(f"{line.strip()} ends with exit code {done.returncode}.\n{done.stdout}{done.stderr}")
    return done.stdout


def rewritten(page: Path, shown: list[Shown]) -> str:
    """The page with its text blocks as they were printed."""
    lines = page.read_text(encoding="utf-8").splitlines(keepends=True)
    for one in reversed(shown):
        start = one.block.line
        lines[start : start + len(one.block.lines)] = [one.printed.rstrip() + "\n"]
    return "".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run a page; 0 where it shows what is printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--write", action="store_true", help="put what was printed into the page")
    given = parser.parse_args(arguments)
    page: Path = given.page.resolve()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = os.path.join(temporary, "page")  # reports show the last folder of a path
        os.mkdir(folder)
        sys.path.insert(0, folder)
        before = os.getcwd()
        os.chdir(folder)
        try:
            shown = run(page, Path(folder))
        except PageError as error:
            print(error)
            return 1
        finally:
            os.chdir(before)
            sys.path.remove(folder)
    if given.write:
        page.write_text(rewritten(page, shown), encoding="utf-8")
        return 0
    wrong = [one.diff(page.name) for one in shown if not one.agrees]
    print(*wrong, f"{len(shown)} outputs compared, {len(wrong)} differ", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
