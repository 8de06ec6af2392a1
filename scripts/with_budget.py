"""Runs a command, says how long it took and how large its largest process was, and fails when that was too large."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time


def main() -> int:
    """The command's exit code; 1 when it succeeded but one of its processes was over the budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-gib", type=float, required=True, help="resident memory allowed to any one process")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command and its arguments")
    args = parser.parse_args()
    begin = time.monotonic()
    code = subprocess.run(args.command, check=False).returncode
    # Linux counts KiB, over all descendants that have been waited for.
    gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{args.command[0]}: {time.monotonic() - begin:.0f} s, largest process {gib:.2f} GiB")
    if code == 0 and gib > args.max_gib:
        print(f"one process took {gib:.2f} GiB; at most {args.max_gib} GiB are allowed", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
