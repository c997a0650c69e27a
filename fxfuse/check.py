"""Check patterns and their kernels: that each pattern is found in every spelling of it and in none of its mutants,
and that every kernel computes what the reference computes. Exit code 0 where all is right, 1 where anything is not."""

from __future__ import annotations

import argparse

SUMMARY = "check the patterns of a pack or file, and their kernels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `fxfuse check`."""
    add = parser.add_argument
    add("target", metavar="PACK", help="an installed pack, one pattern as pack::name, or the path of a .py file")
    add("--pattern", action="append", metavar="NAME", help="only this pattern of it; may be given several times")
    add("--quick", action="store_true", help="every alternative and operand once, instead of every pair of them")
    add("--seed", type=int, default=0, help="of all random choices (default: 0)")
    add("--json", metavar="PATH", help="write the results, with every failure, to this file")


def run(args: argparse.Namespace) -> int:
    """Run the checks; imports late, because torch takes seconds."""
    from fxfuse.checking.command import run

    return run(args)
