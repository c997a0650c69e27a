"""The command line, `fxfuse <command>`: parses arguments and hands them to the module that does the work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import fxfuse
from fxfuse import bench, check, demo, diff_command, doctor, explain_command, tune_command

# Each command is a module with SUMMARY, add_arguments(parser) and run(args) -> exit code. It imports torch in `run`,
# so that help, version and Ctrl-C answer at once.
COMMANDS = {
    "bench": bench,
    "check": check,
    "demo": demo,
    "diff": diff_command,
    "doctor": doctor,
    "explain": explain_command,
    "tune": tune_command,
}

INTERRUPTED = 130  # what shells expect of a process ended by SIGINT


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command, for `main` and for documentation."""
    parser = argparse.ArgumentParser(prog="fxfuse", description="Pattern-based kernel fusion for torch.compile.")
    parser.add_argument("--version", action="version", version=f"fxfuse {fxfuse.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.SUMMARY, description=module.__doc__)
        module.add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors made for people and Ctrl-C end it with one line and without a traceback."""
    args = build_parser().parse_args(argv)
    try:
        return COMMANDS[args.command].run(args)
    except KeyboardInterrupt:
        print(f"\nfxfuse {args.command}: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        from fxfuse.errors import FxfuseError

        if not isinstance(error, FxfuseError):
            raise
        print(f"fxfuse {args.command}: {error}", file=sys.stderr)
        return int(getattr(error, "exit_code", 1))


if __name__ == "__main__":
    sys.exit(main())
