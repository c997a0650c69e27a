"""The pattern library over every language model that transformers ships.

    python -m bench.coverage                        # all of it; goes on where an earlier run was stopped
    python -m bench.coverage llama qwen3_moe        # these only
    python -m bench.coverage --jobs 2 --fresh       # two at a time; forget what is there
    python -m bench.coverage --dtypes fp32 --modes forward,outliers
    python -m bench.coverage page                   # docs/coverage.md and the JSON, from what is there
    python -m bench.coverage diff A.json B.json     # what changed between two versions of transformers
    python -m bench.coverage names                  # the architectures
    python -m bench.coverage real                   # SmolLM2 and MiniLM as they are published, if they are here

Each architecture is built from a tiny config, run in eager and in float64, captured once by Dynamo, and compiled with
each pattern alone, with all patterns, and with fxfuse's defaults.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported

ROOT = Path(__file__).parents[2]


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["diff"]:
        from bench.coverage.difference import main as diff

        return diff(argv[1:])
    if argv[:1] == ["real"]:
        from bench.coverage.real import main as real

        return real(argv[1:])
    parser = argparse.ArgumentParser(
        prog="python -m bench.coverage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="architectures, such as llama or t5:seq2seq; or `page`, `names`")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default 1)")
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--modes", default="forward,backward")
    parser.add_argument("--patterns", default="", help="comma-separated (default: every pattern of the library)")
    parser.add_argument("--seconds", type=float, default=240.0, help="limit for one architecture (default 240)")
    parser.add_argument("--memory", type=float, default=12.0, help="GiB for one architecture (default 12)")
    parser.add_argument("--fresh", action="store_true", help="run again what is there already")
    parser.add_argument("--folder", type=Path, help="where records are kept (default build/coverage-VERSION)")
    parser.add_argument("--json", type=Path, help="also write the summary to this file")
    args = parser.parse_args(argv)
    from bench.coverage.quiet import silence

    silence()
    import transformers

    from bench.coverage import architectures, running

    folder = args.folder or ROOT / "build" / f"coverage-{transformers.__version__}"
    if args.names == ["names"]:
        print("\n".join(a.name for a in architectures.everything()))
        return 0
    if args.names != ["page"]:
        wanted = [architectures.by_name(n) for n in args.names] or architectures.everything()
        plan = running.Plan(
            folder, tuple(args.dtypes.split(",")), tuple(args.modes.split(",")),
            tuple(filter(None, args.patterns.split(","))), args.jobs, args.seconds, args.memory, args.fresh,
        )  # fmt: skip
        running.run(wanted, plan)
    from bench.coverage import page

    page.write(folder, args.json, with_page=args.names in ([], ["page"]) and args.folder is None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
