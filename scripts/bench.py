#!/usr/bin/env python3
"""The measuring part of `python -m pyflash3 bench`, with the same options.

    scripts/bench.py --grid paper --peers DIR --out benchmarks/records/paper-bf16.json
    scripts/bench.py --host-cost --peers DIR
    scripts/bench.py --accuracy --peers DIR
    scripts/bench.py --from RECORD.json --chart FILE.png
    scripts/bench.py --compare OLD.json NEW.json

benchmarks/README.md says what a record holds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pyflash3.tools.backend import cuda_obstacle
from pyflash3.tools.bench import command


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments), measure)


def measure(options: argparse.Namespace) -> int:
    obstacle = cuda_obstacle()
    if obstacle is not None:
        return command.refuse(f"there is no GPU to measure on: {obstacle}")
    # Only here: records need neither CuPy nor torch.
    from scripts.benchlib.measure import run
    from scripts.benchlib.peers import PeerError
    from scripts.benchlib.selection import UnknownShapesError

    try:
        return run(options)
    except (PeerError, UnknownShapesError) as error:
        return command.refuse(str(error))


if __name__ == "__main__":
    sys.exit(main())
