"""Measure fxfuse on this machine beside every other way of running the same function: eager, torch.compile's modes,
weights stacked by hand, Liger, and each kernel by name. The figures go into one JSON file for each machine, which
`fxfuse bench page` makes tables of. A run that was stopped, or had too little time, goes on with --resume."""

from __future__ import annotations

import argparse

from fxfuse.tune_command import DTYPES, WIDTHS, positive

SUMMARY = "measure fxfuse beside torch.compile on this machine"

SUITES = {
    "op": "one site by itself, at the widths of known models and from 1 to 8192 rows",
    "model": "prefill and decode of whole models, in tokens per second",
    "compile": "seconds to compile, from empty caches",
    "memory": "bytes that each arm holds, and takes at the peak",
    "kernels": "every kernel that can run here against float64, at sizes that fill its tiles and that do not",
    "tune": "what `fxfuse tune` measures, at the op suite's shapes: later compiles choose kernels by it",
    "all": "kernels, the tests that need an accelerator, tune, op, model, compile and memory, within 25 minutes",
}

DEVICES = ("cpu", "cuda")
PAGE = "docs/performance.md"
RESULTS = "bench/results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the suites of `fxfuse bench` and their flags."""
    suites = parser.add_subparsers(dest="suite", metavar="suite", required=True)
    for name, what in SUITES.items():
        _add_suite(suites.add_parser(name, help=what, description=what[0].upper() + what[1:] + "."), name)
    page = suites.add_parser("page", help="write the tables and plots of all results files into a page")
    page.add_argument("--results", default=RESULTS, metavar="FOLDER", help=f"the files (default: {RESULTS})")
    page.add_argument("--page", default=PAGE, metavar="FILE", help=f"the page (default: {PAGE})")
    page.add_argument("--check", action="store_true", help="change nothing; exit code 1 if something would change")


def _add_suite(parser: argparse.ArgumentParser, suite: str) -> None:
    add = parser.add_argument
    add("--device", choices=DEVICES, help="where to measure (default: cuda where there is one, else cpu)")
    add("--quick", action="store_true", help="few small cells: does it work here?")
    add("--budget", type=float, metavar="SECONDS", help="stop in time, and leave a valid file")
    add("--resume", action="store_true", help="leave out the cells that the file has")
    add("--fresh", action="store_true", help="begin a new file in place of the one of this machine")
    add("--results", default=RESULTS, metavar="FOLDER", help=f"where the JSON files are (default: {RESULTS})")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: torch's own choice)")
    add("--dtypes", nargs="+", choices=DTYPES, help="of inputs and weights")
    add("--seconds", type=float, help="for the turns of one cell (op) or one arm (model)")
    add("--inner", choices=("inductor", "aot_eager", "eager"), default="inductor", help="what compiles every arm")
    add("--list", action="store_true", help="list the arms, and why which of them cannot run here")
    if suite not in ("kernels", "tune", "all"):
        add("--arms", nargs="+", metavar="NAME", help="only these, and those that ratios are to")
    if suite in ("op", "tune", "all"):
        add("--pattern", action="append", metavar="NAME", help="may be given several times")
        add("--widths", nargs="+", choices=WIDTHS, help="the models whose widths are taken")
        add("--rows", nargs="+", type=positive, metavar="N")
        add("--cache-mib", type=positive, metavar="N", help="the last-level cache (default: as the machine tells)")
    if suite not in ("op", "kernels", "tune"):
        add("--models", nargs="+", metavar="NAME", help="smollm2, 0.6b, 8b")
        add("--layers", type=positive, metavar="N", help="of the random models")
        add("--vocabulary", type=positive, metavar="N", help="of the random models")
        add("--prompt-tokens", type=positive, metavar="N")


def run(args: argparse.Namespace) -> int:
    """Measure; imports late, because torch takes seconds."""
    from fxfuse.benchmarks.command import run

    return run(args)
