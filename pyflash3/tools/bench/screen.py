"""What a run or a record shows on a terminal."""

from __future__ import annotations

import shutil
import sys
from typing import Any

from .records import OURS, Record, Row, summarise

_BAR = 24  # characters


def show(record: Record) -> None:
    """The table of a record and the summary of each of its grids."""
    rows = record["rows"]
    print(table(rows))
    for grid in dict.fromkeys(row["grid"] for row in rows):
        print(f"{grid}: {summary_line(summarise([row for row in rows if row['grid'] == grid]))}")


def table(rows: list[Row]) -> str:
    """One line per shape: TFLOP/s of each contender, ours in microseconds, the larger floor, the ratio."""
    names = [OURS, *dict.fromkeys(name for row in rows for name in row["us"] if name != OURS)]
    head = ["shape", *(f"{name} TFLOP/s" for name in names), "us", "floor us", "ratio", "best peer"]
    lines = [head]
    for row in rows:
        figures = [f"{row['tflops'][name]:.0f}" if name in row["tflops"] else "-" for name in names]
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.3f}"
        floor = max(row["floor_us"].values())
        lines.append([row["name"], *figures, f"{row['us'][OURS]:.1f}", f"{floor:.1f}", ratio, row["best_peer"] or "-"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    left = (0, len(head) - 1)
    return "\n".join(
        "  ".join(x.ljust(w) if i in left else x.rjust(w) for i, (x, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def summary_line(summary: dict[str, Any] | None) -> str:
    """The summary in one sentence."""
    if summary is None:
        return "no peers: nothing to compare with (torch, and --peers for FlashAttention-3)"
    return (
        f"{summary['shapes']} shapes over the better peer: geometric mean {summary['geometric_mean']:.3f}, "
        f"{summary['at_least_1']} at 1.00 or more, smallest {summary['smallest']:.3f} ({summary['smallest_at']})"
    )


def progress(done: int, total: int, seconds: float, row: Row) -> None:
    """After each shape: a bar with the time left that is overwritten on a terminal, and a line each in a log."""
    figures = ", ".join(f"{name} {value:.0f}" for name, value in row["tflops"].items())
    ratio = "" if row["ratio"] is None else f", ratio {row['ratio']:.3f}"
    text = f"{row['name']}: {figures} TFLOP/s{ratio}"
    if not sys.stdout.isatty():
        print(f"[{done:3}/{total}] {text}", flush=True)
        return
    left = round(seconds / done * (total - done))
    line = f"[{'#' * (_BAR * done // total):-<{_BAR}}] {done}/{total}, {left // 60}:{left % 60:02} left  {text}"
    # A line that wraps could not be overwritten.
    columns = shutil.get_terminal_size().columns
    print(f"\r\033[K{line[: columns - 1]}", end="" if done < total else "\n", flush=True)
