#!/usr/bin/env python3
"""Times pyflash3 on grids of shapes, beside FlashAttention-3 and cuDNN where they are there, in one process.

    scripts/bench.py --grid paper --peers DIR --out benchmarks/records/paper-bf16.json
    scripts/bench.py --host-cost --peers DIR
    scripts/bench.py --accuracy --peers DIR
    scripts/bench.py --compare OLD.json NEW.json

Contenders run in turn on the same inputs, the L2 is flushed before each call, and a row is the median of the rounds.
benchmarks/README.md says what a record holds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if TYPE_CHECKING:
    from scripts.benchlib.contenders import Peers

# Wider than the rounding of two correct results in bfloat16, narrower than any wrong one.
MOST_DIFFERENCE = 0.05


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    from scripts.benchlib.shapes import grids

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", action="append", choices=[*grids(), "all"], help="may be repeated; default: smoke")
    parser.add_argument("--only", metavar="TEXT", help="only shapes whose name contains TEXT, such as 'd128 causal'")
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--peers", metavar="DIR", help="folder with fa3_dense.so.xz and libcudart.so.12")
    parser.add_argument("--alone", action="store_true", help="without peers, torch or not")
    parser.add_argument("--rounds", type=int, default=20, help="timed calls per contender and shape")
    parser.add_argument("--out", metavar="PATH", help="write the record there")
    parser.add_argument("--host-cost", action="store_true", help="measure the cost of issuing a call instead")
    parser.add_argument("--accuracy", action="store_true", help="compare errors against float64 instead of times")
    parser.add_argument("--compare", nargs=2, metavar=("OLD", "NEW"), help="compare two records instead")
    parser.add_argument("--threshold", type=float, default=0.03, help="how much worse --compare lets a shape become")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    if options.compare:
        from scripts.benchlib.report import compare

        old, new = options.compare
        return compare(old, new, options.threshold)
    from scripts.benchlib.contenders import load_peers

    peers = load_peers(options.peers, options.alone)
    if options.host_cost:
        return run_host_cost(options, peers)
    return run_accuracy(options, peers) if options.accuracy else run_grids(options, peers)


def header(kind: str, options: argparse.Namespace, peers: Peers) -> dict[str, Any]:
    """What every record begins with."""
    import cupy

    from scripts.benchlib.environment import describe_environment

    torch = peers.torch
    versions = {} if torch is None else {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}
    return {
        "kind": kind,
        "dtype": options.dtype,
        "environment": describe_environment(cupy) | versions,
    }


def run_host_cost(options: argparse.Namespace, peers: Peers) -> int:
    from scripts.benchlib import host_cost
    from scripts.benchlib.report import write

    record = header("host-cost", options, peers)
    record |= {"calls": host_cost.CALLS, "rows": host_cost.measure(options.dtype, peers)}
    for name, row in record["rows"].items():
        print(f"{name:32} {row['median_us']:8.2f} us")
    if options.out:
        write(options.out, record)
    return 0


def run_accuracy(options: argparse.Namespace, peers: Peers) -> int:
    from scripts.benchlib import accuracy
    from scripts.benchlib.report import write

    rows, good = accuracy.measure(options.dtype, peers)
    for row in rows:
        ratio = row["rmse_over_flash_attention_3"]
        errors = ", ".join(f"{name} {e['rmse']:.3e}" for name, e in row["errors"].items())
        print(f"{row['name']:24} rmse: {errors}" + ("" if ratio is None else f"; ratio {ratio:.3f}"))
    if options.out:
        write(options.out, header("accuracy", options, peers) | {"rows": rows})
    if not good:
        print(f"the root mean square error is more than {accuracy.MOST_RATIO} times FlashAttention-3's somewhere")
    return int(not good)


def run_grids(options: argparse.Namespace, peers: Peers) -> int:
    from scripts.benchlib import report, shapes, timing
    from scripts.benchlib.contenders import free_memory, largest_difference, prepare

    available = shapes.grids()
    names = list(available) if options.grid == ["all"] else options.grid or ["smoke"]
    todo = [(name, s) for name in names for s in available[name] if options.only is None or options.only in str(s)]
    if not todo:
        print(f"no shape of {', '.join(names)} contains {options.only!r}")
        return 2
    ceilings = timing.ceilings(peers.torch, options.dtype)
    free_memory(peers)
    print(f"ceilings: {ceilings['matmul_tflops']:.0f} TFLOP/s, {ceilings['copy_tb_per_s']:.2f} TB/s", flush=True)
    record = header("bench", options, peers) | {"rounds": options.rounds, "ceilings": ceilings}
    rows: list[report.Row] = []
    wrong = 0
    for done, (grid, shape) in enumerate(todo):
        problem = prepare(shape, options.dtype, peers)
        differences = largest_difference(problem)
        problem.outs.clear()
        row = report.make_row(grid, shape, timing.time_in_turn(problem.calls, options.rounds), ceilings)
        row |= {"largest_difference": differences, "unavailable": problem.unavailable}
        rows.append(row)
        if not all(value <= MOST_DIFFERENCE for value in differences.values()):
            wrong += 1
            print(f"WRONG: {shape}: results differ by {differences}", flush=True)
        progress(done + 1, len(todo), row)
        del problem
        free_memory(peers)
        if options.out:  # after every row, so that a run cut short leaves what it has measured
            report.write(options.out, record | {"complete": False, "rows": rows})
    summaries = {name: report.summarise([row for row in rows if row["grid"] == name]) for name in names}
    print("\n" + report.table(rows))
    for name, summary in summaries.items():
        print(f"{name}: {report.summary_line(summary)}")
    if options.out:
        report.write(options.out, record | {"complete": True, "summaries": summaries, "rows": rows})
    return int(wrong > 0)


def progress(done: int, total: int, row: dict[str, Any]) -> None:
    """One line that is overwritten on a terminal, and stays in a log."""
    figures = ", ".join(f"{name} {value:.0f}" for name, value in row["tflops"].items())
    ratio = "" if row["ratio"] is None else f", ratio {row['ratio']:.3f}"
    text = f"[{done:3}/{total}] {row['name']}: {figures} TFLOP/s{ratio}"
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="" if done < total else "\n", flush=True)
    else:
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
