"""Compare two saved reports (JSON): two versions of a model, of a library or of fxfuse, or two sets of options. Exit
code 0: no site differs; 1: some do, or, with --fail-on lost, some are no longer rewritten."""

from __future__ import annotations

import argparse

SUMMARY = "compare two saved reports: sites gained, lost and changed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `fxfuse diff`."""
    parser.add_argument("before", metavar="A.json", help="what report.save wrote")
    parser.add_argument("after", metavar="B.json", help="the other one")
    parser.add_argument("--fail-on", choices=("any", "lost"), default="any", help="what exit code 1 means")


def run(args: argparse.Namespace) -> int:
    """Print the differences."""
    from fxfuse.errors import UnreadableReport
    from fxfuse.report import Report
    from fxfuse.report.diff import diff, render

    reports = []
    for path in (args.before, args.after):
        try:
            reports.append(Report.load(path))
        except (OSError, ValueError) as error:
            raise UnreadableReport(f"{path} cannot be read: {error}") from None
    changes = diff(*reports)
    print(render(changes))
    return int(any(c.kind == "lost" for c in changes) if args.fail_on == "lost" else bool(changes))
