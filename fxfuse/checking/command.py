"""`fxfuse check`: runs the checks on what was asked for, prints, and answers with an exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys

import torch
from rich.console import Console

import fxfuse
from fxfuse.checking.packs import UnknownTarget, patterns_of
from fxfuse.checking.run import check_pattern
from fxfuse.checking.table import show


def run(args: argparse.Namespace) -> int:
    """Check the patterns that the arguments name; 0 where nothing is wrong, else 1."""
    folder = os.path.dirname(os.path.abspath(args.json)) if args.json else None
    if folder is not None and not os.path.isdir(folder):
        raise UnknownTarget(f"--json: there is no folder {folder!r} to write to.")
    patterns = patterns_of(args.target, args.pattern)
    console = Console(width=None if sys.stdout.isatty() else 160)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors are tiny
    try:
        results = []
        for name, pattern in patterns.items():
            with console.status(f"checking {name}"):
                results.append(check_pattern(pattern, name=name, seed=args.seed, quick=args.quick))
    finally:
        torch.set_num_threads(threads)
    show(results, console)
    if args.json:
        versions = {"fxfuse": fxfuse.__version__, "torch": torch.__version__}
        record = {"versions": versions, "patterns": [result.record() for result in results]}
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=2)
    return 0 if all(result.passed for result in results) else 1
