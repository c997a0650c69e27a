"""Say what this machine can run: versions, devices, packs, each pattern's kernels and why not the others, and what was
measured here. Exit code 0 unless something that should work is broken."""

from __future__ import annotations

import argparse

SUMMARY = "say what this machine can run, and why not the rest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `fxfuse doctor`."""
    parser.add_argument("--json", action="store_true", help="print the record instead of tables")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--results", action="store_true", help="show what was measured, shipped results included")
    action.add_argument(
        "--reset-results",
        nargs="?",
        const="",
        metavar="PATTERN",
        help="forget what was measured on this machine, all of it or one pattern's",
    )


def run(args: argparse.Namespace) -> int:
    """Look at the machine; imports late, because torch takes seconds."""
    from fxfuse.diagnosis.command import run

    return run(args)
