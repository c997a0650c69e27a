"""Say what fxfuse does with a program or a model, and why not more: `fxfuse explain train.py --steps 3` runs the script
and reports every compile in it; `fxfuse explain --hf NAME` looks at a model of transformers, with random weights."""

from __future__ import annotations

import argparse

SUMMARY = "say what is fused in a script or a model, and why the rest is not"

ONLY = ("missed", "kept", "rewritten")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `fxfuse explain`."""
    add = parser.add_argument
    add("--hf", metavar="NAME_OR_CONFIG", help="a folder, a name in the local cache, a config.json, or a model type")
    add("--layers", type=int, metavar="N", help="of the model that --hf names (default: all, where they fit)")
    add("--at", metavar="MODULE", help="only what is in this module, such as model.layers.3.mlp")
    add("--pattern", metavar="NAME", help="only this pattern; with --hf it is named, so that it is placed")
    add("--only", choices=ONLY, help="only sites of this outcome")
    add("--code", action="store_true", help="show the lines of each group's first site, before and after")
    add("--html", metavar="FILE", help="write the whole report as a page, too")
    add("--json", metavar="FILE", help="write the whole report as JSON, too; `fxfuse diff` compares two of them")
    add("script", nargs="?", metavar="SCRIPT.py", help="a program that calls torch.compile")
    add("arguments", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments")


def run(args: argparse.Namespace) -> int:
    """Explain; imports late, because torch takes seconds."""
    from fxfuse.explanation.command import run

    return run(args)
