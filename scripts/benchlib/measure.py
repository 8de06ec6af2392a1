"""The three things that scripts/bench.py measures: grids of shapes, the cost of issuing a call, and accuracy."""

from __future__ import annotations

import argparse
import time
from typing import Any

import cupy

from pyflash3.tools.bench import command, records, screen

from . import caches, timing
from .cache_shapes import CacheShape
from .contenders import free_memory, largest_difference, prepare
from .environment import describe_environment
from .peers import Peers, load_peers
from .rows import make_row
from .selection import chosen
from .shapes import Shape

# Wider than the rounding of two correct results in bfloat16, narrower than any wrong one.
MOST_DIFFERENCE = 0.05


def run(options: argparse.Namespace) -> int:
    """Measures what the options ask for; returns the exit code. PeerError, UnknownShapesError."""
    todo = [] if options.host_cost or options.accuracy else chosen(options.grid, options.only)
    peers = load_peers(options.peers, options.alone)
    if options.host_cost:
        return run_host_cost(options, peers)
    return run_accuracy(options, peers) if options.accuracy else run_grids(options, peers, todo)


def header(kind: str, options: argparse.Namespace, peers: Peers) -> records.Record:
    """What every record begins with."""
    torch = peers.torch
    versions = {} if torch is None else {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}
    return {
        "kind": kind,
        "dtype": options.dtype,
        "environment": describe_environment(cupy) | versions,
    }


def run_host_cost(options: argparse.Namespace, peers: Peers) -> int:
    """Microseconds to issue a tiny call."""
    from . import host_cost

    record = header("host-cost", options, peers)
    record |= {"calls": host_cost.CALLS, "rows": host_cost.measure(options.dtype, peers)}
    for name, row in record["rows"].items():
        print(f"{name:48} {row['median_us']:8.2f} us")
    if options.out:
        records.write(options.out, record)
    return 0


def run_accuracy(options: argparse.Namespace, peers: Peers) -> int:
    """Errors against float64; 1 when ours are larger than FlashAttention-3's allow."""
    from . import accuracy

    rows, good = accuracy.measure(options.dtype, peers)
    for row in rows:
        ratio = row["rmse_over_flash_attention_3"]
        errors = ", ".join(f"{name} {e['rmse']:.3e}" for name, e in row["errors"].items())
        print(f"{row['name']:24} rmse: {errors}" + ("" if ratio is None else f"; ratio {ratio:.3f}"))
    if options.out:
        records.write(options.out, header("accuracy", options, peers) | {"rows": rows})
    if not good:
        print(f"the root mean square error is more than {accuracy.MOST_RATIO} times FlashAttention-3's somewhere")
    return int(not good)


def run_grids(options: argparse.Namespace, peers: Peers, todo: list[tuple[str, Shape | CacheShape]]) -> int:
    """Times every shape; 1 when a result differs from a peer's."""
    ceilings = timing.ceilings(peers.torch, options.dtype)
    free_memory(peers)
    print(f"ceilings: {ceilings['matmul_tflops']:.0f} TFLOP/s, {ceilings['copy_tb_per_s']:.2f} TB/s", flush=True)
    record = header("bench", options, peers) | {"rounds": options.rounds, "ceilings": ceilings}
    rows: list[records.Row] = []
    begin = time.monotonic()
    for done, (grid, shape) in enumerate(todo, 1):
        rows.append(measure(grid, shape, options, peers, ceilings))
        screen.progress(done, len(todo), time.monotonic() - begin, rows[-1])
        if options.out:  # after every row, so that a run cut short leaves what it has measured
            records.write(options.out, record | {"complete": False, "rows": rows})
    names = dict.fromkeys(name for name, _ in todo)
    summaries = {name: records.summarise([row for row in rows if row["grid"] == name]) for name in names}
    record |= {"complete": True, "summaries": summaries, "rows": rows}
    if options.out:
        records.write(options.out, record)
    print()
    screen.show(record)
    command.draw(options, record)
    wrong = [row for row in rows if not agrees(row)]
    for row in wrong:
        print(f"WRONG: {row['name']}: results differ by {row['largest_difference']}")
    return int(bool(wrong))


def measure(
    grid: str, shape: Shape | CacheShape, options: argparse.Namespace, peers: Peers, ceilings: dict[str, float]
) -> records.Row:
    """The row of one shape, whose memory is given back."""
    if isinstance(shape, CacheShape):
        problem = caches.prepare(shape, options.dtype, peers)
        same = shape.captured or not shape.append  # new rows make another problem
        if shape.latent_dim_v:
            differences = caches.formula_difference(shape, problem)
        else:
            differences = largest_difference(problem) if same else {}
    else:
        problem = prepare(shape, options.dtype, peers)
        differences = largest_difference(problem)
    problem.outs.clear()
    row = make_row(grid, shape, timing.time_in_turn(problem.calls, options.rounds), ceilings)
    row |= {"largest_difference": differences, "unavailable": problem.unavailable}
    del problem
    free_memory(peers)
    return row


def agrees(row: dict[str, Any]) -> bool:
    """Whether our result is every peer's, or the formula's, up to rounding; a NaN is not."""
    return all(value <= MOST_DIFFERENCE for value in row["largest_difference"].values())
