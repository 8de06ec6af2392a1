"""Command line: python -m pyflash3 info | selftest | demo | bench."""

from __future__ import annotations

import argparse
import sys

from ._errors import Flash3Error
from .tools.bench import command as bench


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pyflash3", description="Exact attention through libflash3.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="what is installed, what was built, and what will run where")
    selftest = commands.add_parser("selftest", help="compare the library with the formula in float64; exit code 0 or 1")
    selftest.add_argument("--quick", action="store_true", help="a few dozen cases instead of a few hundred")
    demo = commands.add_parser("demo", help="run a batch of real size and check it against the formula")
    for command in (selftest, demo):
        command.add_argument(
            "--backend",
            choices=("auto", "host", "cuda"),
            default="auto",
            help="host: NumPy arrays on the CPU; cuda: CuPy arrays on GPU 0; auto (default): cuda where it can run",
        )
    bench.add_arguments(commands.add_parser("bench", help=bench.SUMMARY, description=bench.DESCRIPTION))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(arguments)
    # Each command imports its own needs, so that --help and info work on a broken installation.
    try:
        if args.command == "info":
            from .tools import info

            return info.run()
        if args.command == "selftest":
            from .tools import selftest

            return selftest.run(args.backend, args.quick)
        if args.command == "bench":
            return bench.run(args, lambda _: bench.measure_in_source_tree(arguments[1:]))
        from .tools import demo

        return demo.run(args.backend)
    except Flash3Error as error:
        print(f"pyflash3: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
