"""Options of `python -m pyflash3 bench` and scripts/bench.py, and what they do without measuring.

Measuring needs CuPy and, for the peers, torch, which this package never imports: scripts/bench.py of the source tree
does it, in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SUMMARY = "time it beside its peers, draw charts of records, compare records"
DESCRIPTION = """Times pyflash3 on grids of shapes, beside FlashAttention-3 and cuDNN where they are there, in one
process. Contenders run in turn on the same inputs, the L2 is flushed before each call, and a row is the median of the
rounds. Exit code: 0; 1 for wrong results or a comparison past the threshold; 2 when nothing could be done."""

_SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "bench.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All options of the command."""
    measure = parser.add_argument_group("what to measure (in the source tree, with CuPy)")
    measure.add_argument("--grid", action="append", metavar="NAME", help="may be repeated, or 'all'; default: smoke")
    measure.add_argument("--only", metavar="TEXT", help="only shapes whose name contains TEXT, such as 'd128 causal'")
    measure.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    measure.add_argument("--peers", metavar="PATH", help="FlashAttention-3's library, or the folder that holds it")
    measure.add_argument("--alone", action="store_true", help="without peers, installed or not")
    measure.add_argument("--rounds", type=_at_least_one, default=20, help="timed calls per contender and shape")
    measure.add_argument("--out", metavar="RECORD", help="write what was measured there, as JSON")
    instead = parser.add_argument_group("instead of measuring a grid").add_mutually_exclusive_group()
    instead.add_argument("--from", dest="source", metavar="RECORD", help="show an existing record")
    instead.add_argument("--compare", nargs=2, metavar=("OLD", "NEW"), help="compare two records")
    instead.add_argument("--host-cost", action="store_true", help="measure the cost of issuing a call")
    instead.add_argument("--accuracy", action="store_true", help="compare errors against float64")
    results = parser.add_argument_group("what to make of it")
    results.add_argument("--chart", metavar="FILE.png", help="draw the record (pip install 'pyflash3[bench]')")
    results.add_argument(
        "--threshold", type=_fraction, default=0.03, help="how much worse --compare lets a shape be; default: 0.03"
    )


def obstacle(options: argparse.Namespace) -> str | None:
    """Why these options cannot be followed, in one sentence, found before minutes of measuring; None when they can."""
    if options.chart is None:
        return None
    if options.compare or options.host_cost or options.accuracy:
        return "--chart draws the record of a grid; it cannot go with --compare, --host-cost or --accuracy"
    if Path(options.chart).suffix.lower() != ".png":
        return f"--chart is {options.chart}; it must end in .png"
    if importlib.util.find_spec("matplotlib") is None:
        return "--chart needs matplotlib, which is not installed; install it with: pip install 'pyflash3[bench]'"
    return None


def run(options: argparse.Namespace, measure: Callable[[argparse.Namespace], int]) -> int:
    """Follows the options, by measure(options) where something is to be measured; returns the exit code."""
    problem = obstacle(options)
    if problem is not None:
        return refuse(problem)
    return run_on_records(options) if options.source or options.compare else measure(options)


def measure_in_source_tree(arguments: list[str]) -> int:
    """Hands the arguments to scripts/bench.py; returns its exit code."""
    if not _SCRIPT.is_file():
        return refuse(f"measuring needs pyflash3's source tree, but there is no {_SCRIPT}; --from and --compare do not")
    return subprocess.call([sys.executable, str(_SCRIPT), *arguments])  # noqa: S603 - our own script


def run_on_records(options: argparse.Namespace) -> int:
    """--from and --compare, which need neither CuPy nor a GPU."""
    from . import records, screen

    try:
        if options.compare:
            old, new = map(records.load, options.compare)
            return records.compare(old, new, options.threshold)
        record = records.load(options.source)
    except records.RecordError as error:
        return refuse(str(error))
    screen.show(record)
    draw(options, record)
    return 0


def draw(options: argparse.Namespace, record: dict[str, Any]) -> None:
    """The chart, if one was asked for."""
    if options.chart is not None:
        from . import chart

        chart.draw(record, options.chart)
        print(f"chart: {options.chart}")


def refuse(why: str) -> int:
    """Says why nothing was done; returns the exit code for that."""
    print(f"pyflash3 bench: {why}", file=sys.stderr)
    return 2


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"it is {text}; it must be at least 1")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"it is {text}; it must be from 0 to below 1, such as 0.03")
    return value
