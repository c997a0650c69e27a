"""`fxfuse doctor`: looks, prints, and answers with an exit code."""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console

from fxfuse import results
from fxfuse.diagnosis.record import diagnose
from fxfuse.diagnosis.show import show, show_results


def run(args: argparse.Namespace) -> int:
    """Do what the arguments ask for; 1 where something that should work is broken."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    if args.reset_results is not None:
        count = results.reset(args.reset_results or None)
        of = f" of {args.reset_results}" if args.reset_results else ""
        print(f"{count} measurement{'s' if count != 1 else ''}{of} forgotten, in {results.folder()}")
        return 0
    if args.results:
        known = results.current()
        if args.json:
            print(json.dumps([entry.to_json() for entry in known.entries], indent=1))
        else:
            show_results(known, console)
        return 1 if known.problems else 0
    found = diagnose()
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        show(found, console)
    return 1 if found["problems"] else 0
