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
    for part in ([row for row in rows if "kv_bytes" not in row], [row for row in rows if "kv_bytes" in row]):
        if part:
            print(cache_table(part) if "kv_bytes" in part[0] else table(part))
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
    return _aligned(lines)


def cache_table(rows: list[Row]) -> str:
    """One line per shape with a KV cache, where moving K and V is all of the work, or for latent caches may be."""
    lines = [
        [
            "shape",
            "us",
            "peer us",
            "ratio",
            "K/V TB/s",
            "of the copy",
            "TFLOP/s",
            "new rows us",
            "graph us",
            "best peer",
        ]
    ]
    for row in rows:
        peer = row["best_peer"]
        figures = ["-", "-"] if peer is None else [f"{row['us'][peer]:.1f}", f"{row['ratio']:.3f}"]
        extra = [f"{row[key]:.1f}" if key in row else "-" for key in ("append_us", "graph_us")]
        rate = [f"{row['kv_tb_per_s']:.2f}", f"{row['share_of_copy']:.2f}", f"{row['tflops'][OURS]:.0f}"]
        lines.append([row["name"], f"{row['us'][OURS]:.1f}", *figures, *rate, *extra, peer or "-"])
    return _aligned(lines)


def _aligned(lines: list[list[str]]) -> str:
    """Columns as wide as they must be; the first and the last one are text."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    left = (0, len(widths) - 1)
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
    unit, kind, digits = ("us", "us", 1) if "kv_bytes" in row else ("TFLOP/s", "tflops", 0)
    figures = ", ".join(f"{name} {value:.{digits}f}" for name, value in row[kind].items())
    ratio = "" if row["ratio"] is None else f", ratio {row['ratio']:.3f}"
    text = f"{row['name']}: {figures} {unit}{ratio}"
    if not sys.stdout.isatty():
        print(f"[{done:3}/{total}] {text}", flush=True)
        return
    left = round(seconds / done * (total - done))
    line = f"[{'#' * (_BAR * done // total):-<{_BAR}}] {done}/{total}, {left // 60}:{left % 60:02} left  {text}"
    # A line that wraps could not be overwritten.
    columns = shutil.get_terminal_size().columns
    print(f"\r\033[K{line[: columns - 1]}", end="" if done < total else "\n", flush=True)
